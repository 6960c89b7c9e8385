"""A store that is yet to be dumped, so that a distiller can refuse settings which it will not fit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.focal.rule import FocalRule
from store_schema import MapCode, StoreSchema


@dataclass(frozen=True)
class PlannedStore:
    """What a distiller is built from, as of a store's reader; arrays are zeros.

    Attributes:
        name: place of the store in messages.
        schema: shape of the store.
        manifest: the sections that a distiller reads.
        constants: the expert's, by path.
    """

    name: str
    schema: StoreSchema
    manifest: Mapping[str, Any]
    constants: Mapping[str, NDArray[Any]]

    @classmethod
    def of(cls, schema: StoreSchema, rule: FocalRule, pc_range: Sequence[float], name: object) -> Self:
        """The store of a schema.

        Args:
            rule: of the store's areas.
            pc_range: (x0, y0, z0, x1, y1, z1) metres that the expert's BEV map spans.
        """
        statistics = {path: {"mean": [0.0] * size, "std": [1.0] * size} for path, size in schema.maps.items()}
        manifest = {"focal": rule.to_dict(), "coordinates": {"pc_range": list(pc_range)}, "statistics": statistics}
        constants = {path: np.zeros(spec.shape, spec.dtype) for path, spec in schema.constants().items()}
        return cls(str(name), schema, manifest, constants)

    @property
    def codes(self) -> dict[str, MapCode]:
        """Codes by map; empty for features that are not coded."""
        return self.schema.codes(self.constants)

    def __str__(self) -> str:
        return self.name
