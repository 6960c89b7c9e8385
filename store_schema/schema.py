"""Names, dimensions, types and units of every array in a store; nothing else defines them."""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from .errors import StoreError

SCHEMA_VERSION = 1
CHUNK_CELLS = 1024
# Sampling locations are 16-bit fixed point over this range of the BEV extent: finer than float16 near 1, and positions
# farther out read nothing but zeros anyway. The attributes follow the CF conventions, so xarray decodes them.
SAMPLING_RANGE = (-0.5, 1.5)


@dataclass(frozen=True)
class ArraySpec:
    """One array of the store.

    Attributes:
        shape: without the leading frame dimension for arrays with ``per_frame``.
        dims: names of ``shape``'s dimensions.
        chunk: of ``shape``; a frame has chunks of its own.
        kind: ``values`` (focal cells), ``index``, ``count`` or ``plain``.
    """

    path: str
    shape: tuple[int, ...]
    dims: tuple[str, ...]
    dtype: str
    chunk: tuple[int, ...]
    kind: str = "plain"
    units: str = ""
    about: str = ""
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StoreSchema:
    """Sizes of a store, from which all arrays follow."""

    bev: tuple[int, int, int]
    """Rows, columns and channels of the expert's BEV map."""
    pv: list[tuple[int, int, int, int]]
    """Rows, columns, channels and stride (pixels of the expert's padded image) of each pyramid level."""
    cameras: tuple[str, ...]
    """Camera names in the order of flat PV cell numbers."""
    queries: int
    """K kept per frame."""
    layers: int
    """Decoder layers."""
    heads: int
    """Attention heads."""
    points: int
    """Sampled points per head."""
    query_channels: int
    """Channels of a query state."""
    bev_kmax: int
    """Most BEV cells that a frame can store."""
    pv_kmax: list[int]
    """The same for each level, over all cameras."""
    layout: str = "focal"
    """``focal`` (cells in areas) or ``dense`` (whole maps)."""

    def __post_init__(self) -> None:
        if self.layout not in ("focal", "dense"):
            raise StoreError(f"schema.layout is '{self.layout}'; use focal or dense")
        if len(self.pv) != len(self.pv_kmax):
            raise StoreError(
                f"schema.pv has {len(self.pv)} levels but schema.pv_kmax {len(self.pv_kmax)}; give one capacity per level"
            )
        for name in ("queries", "layers", "heads", "points", "query_channels", "bev_kmax"):
            if getattr(self, name) < 1:
                raise StoreError(f"schema.{name} is {getattr(self, name)}; it must be at least 1")
        if self.bev_kmax > self.bev[0] * self.bev[1]:
            raise StoreError(
                f"schema.bev_kmax is {self.bev_kmax}, more than the grid's {self.bev[0] * self.bev[1]} cells"
            )
        for i, (kmax, cells) in enumerate(zip(self.pv_kmax, self.pv_cells, strict=True)):
            if not 1 <= kmax <= cells:
                raise StoreError(f"schema.pv_kmax[{i}] is {kmax}; it must be in 1..{cells}")

    @property
    def pv_cells(self) -> list[int]:
        """Cells of each level over all cameras."""
        return [len(self.cameras) * rows * cols for rows, cols, _, _ in self.pv]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "StoreSchema":
        """From a manifest's entry."""
        try:
            known = dict(values, bev=tuple(values["bev"]), cameras=tuple(values["cameras"]))
            return cls(**dict(known, pv=[tuple(level) for level in values["pv"]]))
        except (TypeError, KeyError) as error:
            raise StoreError(f"the manifest's schema does not fit this version: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """For a manifest."""
        plain = asdict(self)
        return plain | {"bev": list(self.bev), "pv": [list(level) for level in self.pv], "cameras": list(self.cameras)}

    def arrays(self) -> dict[str, ArraySpec]:
        """Per-frame arrays by path."""
        k, layers, heads, points = self.queries, self.layers, self.heads, self.points
        specs = [
            ArraySpec(
                "query/boxes",
                (k, 9),
                ("query", "box"),
                "float32",
                (k, 9),
                units="m, rad, m/s",
                about="x y z dx dy dz yaw vx vy, LiDAR frame, z of the centre",
            ),
            ArraySpec("query/score", (k,), ("query",), "float32", (k,), about="best class score"),
            ArraySpec("query/label", (k,), ("query",), "uint8", (k,), about="class number"),
            ArraySpec(
                "query/reference",
                (k, 3),
                ("query", "xyz"),
                "float32",
                (k, 3),
                about="reference point entering the last layer, 0..1 of pc_range",
            ),
            ArraySpec(
                "query/features",
                (k, self.query_channels),
                ("query", "channel"),
                "float16",
                (k, self.query_channels),
                about="query state of the last layer",
            ),
            ArraySpec(
                "query/sampling",
                (layers, k, heads, points, 2),
                ("layer", "query", "head", "point", "xy"),
                "uint16",
                (layers, k, heads, points, 2),
                about="sampling locations, 0..1 of the BEV extent",
                attributes=sampling_attributes(),
            ),
            ArraySpec(
                "query/attention",
                (layers, k, heads, points),
                ("layer", "query", "head", "point"),
                "float16",
                (layers, k, heads, points),
                about="attention weights",
            ),
        ]
        height, width, channels = self.bev
        if self.layout == "dense":
            specs.append(
                ArraySpec(
                    "bev/dense", (height, width, channels), ("y", "x", "channel"), "float16", (height, width, channels)
                )
            )
            for i, (rows, cols, depth, stride) in enumerate(self.pv):
                shape = (len(self.cameras), rows, cols, depth)
                specs.append(
                    ArraySpec(
                        f"pv/{i}/dense",
                        shape,
                        ("camera", "row", "col", f"channel_{i}"),
                        "float16",
                        shape,
                        attributes={"stride": stride},
                    )
                )
        else:
            specs += self._focal("bev", self.bev_kmax, channels, height * width, "row * columns + column", "")
            for i, (rows, cols, depth, stride) in enumerate(self.pv):
                about = f"(camera * {rows} + row) * {cols} + column"
                specs += self._focal(f"pv/{i}", self.pv_kmax[i], depth, self.pv_cells[i], about, str(stride))
        return {spec.path: spec for spec in specs}

    @staticmethod
    def _focal(name: str, kmax: int, channels: int, cells: int, formula: str, stride: str) -> list[ArraySpec]:
        dim = name.replace("/", "_") + "_cell"
        small = "uint16" if cells <= 2**16 else "uint32"
        attributes = {"cells": cells} | ({"stride": int(stride)} if stride else {})
        chunk = min(CHUNK_CELLS, kmax)
        return [
            ArraySpec(
                f"{name}/values",
                (kmax, channels),
                (dim, f"{name.replace('/', '_')}_channel"),
                "float16",
                (chunk, channels),
                "values",
                about="expert features of the stored cells",
                attributes=attributes,
            ),
            ArraySpec(
                f"{name}/index",
                (kmax,),
                (dim,),
                small,
                (kmax,),
                "index",
                about=f"flat cell number: {formula}",
                attributes=attributes,
            ),
            ArraySpec(
                f"{name}/count",
                (),
                (),
                "int32",
                (),
                "count",
                about="stored cells; the rest of a row is padding",
                attributes=attributes,
            ),
        ]

    def constants(self) -> dict[str, ArraySpec]:
        """Arrays without a frame dimension by path."""
        depth = self.bev[2]
        return {
            spec.path: spec
            for spec in (
                ArraySpec(
                    "decoder/value_proj_weight",
                    (self.layers, depth, depth),
                    ("layer", "out", "in"),
                    "float32",
                    (self.layers, depth, depth),
                    about="value projection that a layer's queries read BEV features through",
                ),
                ArraySpec(
                    "decoder/value_proj_bias", (self.layers, depth), ("layer", "out"), "float32", (self.layers, depth)
                ),
            )
        }

    def frame_keys(self) -> set[str]:
        """What a frame given to the writer holds."""
        return {path for path, spec in self.arrays().items() if spec.kind != "count"}

    def check_frame(self, token: str, frame: dict[str, np.ndarray]) -> None:
        """Refuse a frame that does not fit, field by field.

        Raises:
            StoreError: naming frame, field, and what is expected.
        """
        keys = self.frame_keys()
        for problem, names in (("lacks", keys - frame.keys()), ("has unknown", frame.keys() - keys)):
            if names:
                raise StoreError(
                    f"frame {token} {problem} {', '.join(sorted(names))}; the schema wants {', '.join(sorted(keys))}"
                )
        specs = self.arrays()
        for path, array in frame.items():
            spec = specs[path]
            if spec.kind == "values":
                self._check_focal(token, path, array, frame[path.replace("values", "index")], spec)
            elif spec.kind == "plain" and array.shape != spec.shape:
                raise StoreError(f"frame {token}: {path} has shape {array.shape}, expected {spec.shape}")
            if array.dtype.kind == "f":
                with np.errstate(over="ignore"):
                    stored = array.astype(np.float16) if spec.dtype == "float16" else array
                if not np.isfinite(stored).all():
                    what = "NaN or infinite values" if not np.isfinite(array).all() else "values beyond float16's 65504"
                    raise StoreError(f"frame {token}: {path} holds {what}; nothing of its shard was written")
            elif spec.dtype.startswith("float"):
                raise StoreError(f"frame {token}: {path} has type {array.dtype}, expected floating point")

    @staticmethod
    def _check_focal(token: str, path: str, values: np.ndarray, index: np.ndarray, spec: ArraySpec) -> None:
        kmax, channels = spec.shape
        if values.ndim != 2 or values.shape[1] != channels or index.shape != values.shape[:1]:
            raise StoreError(
                f"frame {token}: {path} has shape {values.shape} for {index.shape} cell numbers, expected (k, {channels}) and (k,)"
            )
        if len(values) > kmax:
            raise StoreError(
                f"frame {token}: {path} has {len(values)} cells, more than the capacity {kmax}; raise dump's capacity or lower the focal margins"
            )
        cells = spec.attributes["cells"]
        if len(index) and (
            index.dtype.kind not in "iu"
            or index.min() < 0
            or index.max() >= cells
            or (np.diff(index.astype(np.int64)) <= 0).any()
        ):
            raise StoreError(f"frame {token}: the cell numbers of {path} must rise strictly within 0..{cells - 1}")


def sampling_attributes() -> dict[str, float]:
    """CF packing attributes of sampling locations."""
    low, high = SAMPLING_RANGE
    return {"scale_factor": (high - low) / 65535, "add_offset": low}


def pack_sampling(locations: np.ndarray) -> np.ndarray:
    """Locations to uint16 fixed point; beyond ``SAMPLING_RANGE`` they are clipped."""
    low, high = SAMPLING_RANGE
    share = (np.clip(locations.astype(np.float64), low, high) - low) / (high - low)
    return np.round(share * 65535).astype(np.uint16)


def unpack_sampling(packed: np.ndarray) -> np.ndarray:
    """uint16 fixed point to float32 locations."""
    low, high = SAMPLING_RANGE
    return (packed * np.float64((high - low) / 65535) + low).astype(np.float32)
