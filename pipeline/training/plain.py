"""Training of a student that distils nothing."""

from pathlib import Path
from typing import Any

from pipeline.data.source import FrameSource
from pipeline.expert.adapted import trainable_model
from pipeline.models.build import load_config
from pipeline.training.run import finish, train
from pipeline.training.settings import RANDOM, Inheritance, Initial, RunSettings, Validation, read_schedule


def train_plain(
    config: Path,
    source: FrameSource,
    out: Path,
    run: RunSettings,
    expert: Path | None = None,
    inherit: tuple[str, ...] = (),
    init: Initial = RANDOM,
    validation: Validation | None = None,
    restart: bool = False,
) -> dict[str, Any]:
    """Train a student on its detection losses alone; a killed training goes on from its last checkpoint.

    Args:
        config: detector config of the student.
        out: checkpoint to write, of the finished student.
        expert: checkpoint that the modules ``inherit`` start from.
        init: pretrained file that backbone and neck start from.
        validation, restart: as of :func:`~pipeline.training.run.train`.

    Returns:
        facts as of :func:`~pipeline.training.run.train`, also in ``train.json`` beside ``out``.

    Raises:
        FD3DError: contradictory or changed settings, or a loss that is not finite.
    """
    cfg = load_config(config)
    read_schedule(cfg)  # names what a file that is no detector's config lacks
    inheritance = Inheritance(expert, inherit) if expert is not None and inherit else None
    shared: Any = dict(init=init, inheritance=inheritance, validation=validation, restart=restart)
    facts = train(cfg, trainable_model(cfg, source), source, out, run, **shared)
    return finish(out, facts | {"method": "plain"})
