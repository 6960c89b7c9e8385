"""What a grid file unfolds to: experts, trainings, and the rows of the table that a training gives."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

Params = dict[str, Any]
EXPERT = "expert"
"""Method of the rows that hold an expert's own metrics."""
VAL, DEV = "val", "dev"
SPLITS = (VAL, DEV)
"""Splits of the profile's data that a group may be evaluated on; the first is the default."""


@dataclass(frozen=True)
class Expert:
    """An expert of a family: config and weights."""

    name: str
    config: Path
    checkpoint: Path
    trained_fully: bool
    """Whether the weights are the last ones, not those of an early iteration."""


class Row(NamedTuple):
    """A row of a group; with a training's family and seed it is a line of the table.

    Attributes:
        split: split of the profile's data that the group is evaluated on, ``val`` or ``dev``.
        expert: name of the row's expert.
    """

    group: str
    row: str
    split: str
    expert: str


@dataclass
class Training:
    """One student training, or the evaluation of an expert; rows of several groups may share one.

    Attributes:
        expert: name of the expert; for a student that reads an expert's weights alone, the first one with these weights.
        rows: rows that the training gives.
        store: name of the recipe; None when the method reads no store.
        overrides: values that replace those of the parameters file.
    """

    family: str
    method: str
    seed: int
    expert: str
    store: str | None
    overrides: Params
    rows: list[Row] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Group, family, row and seed for people, and as a path."""
        return f"{self.rows[0].group}/{self.family}/{self.rows[0].row}/{self.seed}"

    @property
    def splits(self) -> list[str]:
        """Splits that the detector is evaluated on, those of the rows."""
        return list(dict.fromkeys(row.split for row in self.rows))

    def identity(self) -> str:
        """Key that is equal for trainings that give the same detector."""
        return json.dumps(
            [self.family, self.method, self.seed, self.expert, self.store, self.overrides], sort_keys=True
        )
