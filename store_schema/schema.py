"""Names, dimensions, types and units of every array in a store; no other module defines an array."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from .codes import CODED, Code, MapCode, map_codes
from .errors import StoreError
from .specs import ArraySpec, code_arrays, focal_arrays

SCHEMA_VERSION, OLDEST_VERSION = 3, 2
"""Newest and oldest version that this program reads. Version 3 has coded features; other stores are written as version 2."""
READINGS = ("bev", "cameras", "none")
VALUES = ("float16", "float32", "uint8", *CODED)
# Sampling locations are 16-bit fixed point over this range of the BEV extent: finer than float16 near 1, and positions
# farther out read nothing but zeros anyway. The attributes follow the CF conventions, so xarray decodes them.
SAMPLING_RANGE = (-0.5, 1.5)
LIDAR_FRAME = "LiDAR frame"
"""Words for the frame of LIDAR_TOP, in which boxes and points are by default."""


@dataclass(frozen=True)
class StoreSchema:
    """Sizes of a store, from which all arrays follow."""

    bev: tuple[int, int, int] | None
    """Rows, columns and channels of the expert's BEV map; None for an expert without one."""
    pv: list[tuple[int, int, int, tuple[float, float]]]
    """Rows, columns, channels and stride of each pyramid level; may be empty. A stride is the rows and columns of pixels of
    the expert's padded image to a cell, which differ where a level rounds one of them up, or one number for both."""
    cameras: tuple[str, ...]
    """Camera names in the order of flat PV cell numbers."""
    queries: int
    """K kept per frame."""
    bev_kmax: int
    """Most BEV cells that a frame can store; 0 without a BEV map."""
    pv_kmax: list[int]
    """Most cells of each pyramid level that a frame can store, over all cameras."""
    layout: str = "focal"
    """``focal`` (cells in areas) or ``dense`` (whole maps)."""
    values: str = "float16"
    """Features of the maps as ``float16`` or ``float32``; those of focal cells also as ``uint8`` with an affine map per cell, or
    as codes, ``pq`` or ``pca`` (:mod:`store_schema.codes`)."""
    reading: str = "bev"
    """Source that queries read: ``bev`` (positions on the BEV map), ``cameras`` (projected points) or ``none`` (not known)."""
    layers: int = 0
    """Decoder layers whose reading is stored."""
    heads: int = 0
    """Attention heads, for ``bev``."""
    points: int = 0
    """Sampled points per head, for ``bev``."""
    query_channels: int = 0
    """Channels of a query state, and of what queries read from cameras; 0 where states are not known."""
    code_bytes: int = 0
    """Bytes of a cell's code, for ``pq`` and ``pca``."""
    code_bits: int = 8
    """Bits of a component, for ``pca``."""
    frame: str = LIDAR_FRAME
    """Frame of reference of boxes and points, in words."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "pv", [(*level[:3], _pair(level[3])) for level in self.pv])
        if self.layout not in ("focal", "dense"):
            raise StoreError(f"schema.layout is '{self.layout}'; use focal or dense")
        if self.values not in VALUES:
            raise StoreError(f"schema.values is '{self.values}'; use {', '.join(VALUES)}")
        if self.layout == "dense" and not self.values.startswith("float"):
            raise StoreError(
                f"schema.values is {self.values} but schema.layout is dense; dense maps are float16 or float32, or use layout focal"
            )
        if len(self.pv) != len(self.pv_kmax):
            raise StoreError(
                f"schema.pv and schema.pv_kmax differ in length, {len(self.pv)} and {len(self.pv_kmax)}; give one capacity per level"
            )
        if self.reading not in READINGS:
            raise StoreError(f"schema.reading is '{self.reading}'; use {', '.join(READINGS)}")
        if self.reading == "bev" and self.bev is None:
            raise StoreError("schema.reading is 'bev' but schema.bev is None; queries need a map to read")
        if self.reading == "cameras" and not self.pv:
            raise StoreError("schema.reading is 'cameras' but schema.pv is empty; queries need levels to read")
        needed = {"bev": ("layers", "heads", "points", "query_channels"), "cameras": ("layers", "query_channels")}
        for name in ("queries", *needed.get(self.reading, ()), *(("bev_kmax",) if self.bev else ())):
            if getattr(self, name) < 1:
                raise StoreError(f"schema.{name} is {getattr(self, name)}; it must be at least 1")
        if self.bev_kmax > self.bev_cells:
            raise StoreError(f"schema.bev_kmax is {self.bev_kmax}, more than the grid's {self.bev_cells} cells")
        for i, (kmax, cells) in enumerate(zip(self.pv_kmax, self.pv_cells, strict=True)):
            if not 1 <= kmax <= cells:
                raise StoreError(f"schema.pv_kmax[{i}] is {kmax}; it must be in 1..{cells}")

        if self.code is not None:
            for name, channels in self.maps.items():
                self.code.check(name, channels)

    @property
    def version(self) -> int:
        """Oldest schema version that has these arrays; readers of that version read the store."""
        return SCHEMA_VERSION if self.code else OLDEST_VERSION

    @property
    def code(self) -> Code | None:
        """How features are coded; None for features that are not."""
        return Code(self.values, self.code_bytes, self.code_bits) if self.values in CODED else None

    @property
    def maps(self) -> dict[str, int]:
        """Channels by map: ``bev``, ``pv/0``, ..."""
        bev = {"bev": self.bev[2]} if self.bev else {}
        return bev | {f"pv/{i}": level[2] for i, level in enumerate(self.pv)}

    def codes(self, constants: Mapping[str, Any]) -> dict[str, MapCode]:
        """Codes by map from a store's constants; empty for features that are not coded."""
        return map_codes(self.code, self.maps, constants)

    @property
    def bev_cells(self) -> int:
        """Cells of the BEV map, 0 without one."""
        return self.bev[0] * self.bev[1] if self.bev else 0

    @property
    def pv_cells(self) -> list[int]:
        """Cells of each level over all cameras."""
        return [len(self.cameras) * rows * cols for rows, cols, _, _ in self.pv]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "StoreSchema":
        """Schema from a manifest's entry.

        Raises:
            StoreError: the entry lacks or has unknown fields, or its sizes contradict each other.
        """
        try:
            bev = tuple(values["bev"]) if values["bev"] else None
            known = dict(values, bev=bev, cameras=tuple(values["cameras"]))
            return cls(**known)
        except (TypeError, KeyError, IndexError) as error:
            raise StoreError(f"the manifest's schema does not fit this version: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Entry of a manifest."""
        plain = asdict(self)
        if self.code is None:  # as written before features were coded, so that such stores keep their fingerprints
            del plain["code_bytes"], plain["code_bits"]
        if self.frame == LIDAR_FRAME:  # likewise, before there were other frames
            del plain["frame"]
        bev = list(self.bev) if self.bev else None
        return plain | {
            "bev": bev,
            "pv": [[*level[:3], list(level[3])] for level in self.pv],
            "cameras": list(self.cameras),
        }

    def arrays(self) -> dict[str, ArraySpec]:
        """Per-frame arrays by path."""
        return self._arrays

    @cached_property
    def _arrays(self) -> dict[str, ArraySpec]:
        k, box = self.queries, f"x y z dx dy dz yaw vx vy, {self.frame}, z of the centre"
        specs = [
            ArraySpec("query/boxes", (k, 9), ("query", "box"), "float32", (k, 9), units="m, rad, m/s", about=box),
            ArraySpec("query/score", (k,), ("query",), "float32", (k,), about="best class score"),
            ArraySpec("query/label", (k,), ("query",), "uint8", (k,), about="class number"),
        ]
        specs += self._states() + self._reading()
        if self.bev:
            height, width, channels = self.bev
            if self.layout == "dense":
                specs.append(
                    ArraySpec(
                        "bev/dense", self.bev, ("y", "x", "channel"), self.values, self.bev, about="expert BEV map"
                    )
                )
            else:
                formula = "row * columns + column"
                specs += focal_arrays("bev", self.bev_kmax, channels, height * width, formula, self.values, self.code)
        for i, (rows, cols, depth, stride) in enumerate(self.pv):
            if self.layout == "dense":
                shape = (len(self.cameras), rows, cols, depth)
                specs.append(
                    ArraySpec(
                        f"pv/{i}/dense",
                        shape,
                        ("camera", "row", "col", f"channel_{i}"),
                        self.values,
                        shape,
                        about="expert pyramid level",
                        attributes={"stride": list(stride)},
                    )
                )
            else:
                about = f"(camera * {rows} + row) * {cols} + column"
                kmax, cells = self.pv_kmax[i], self.pv_cells[i]
                specs += focal_arrays(f"pv/{i}", kmax, depth, cells, about, self.values, self.code, list(stride))
        return {spec.path: spec for spec in specs}

    def _states(self) -> list[ArraySpec]:
        """Query states and references, where the expert has them."""
        if not self.query_channels:
            return []
        k, channels = self.queries, self.query_channels
        return [
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
                (k, channels),
                ("query", "channel"),
                "float16",
                (k, channels),
                about="query state of the last layer",
            ),
        ]

    def _reading(self) -> list[ArraySpec]:
        """Arrays of the positions and weights that the queries of every decoder layer read with."""
        k, layers, heads, points = self.queries, self.layers, self.heads, self.points
        if self.reading == "bev":
            return [
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
        if self.reading == "cameras":
            shape = (layers, k, len(self.cameras), len(self.pv))
            return [
                ArraySpec(
                    "query/points",
                    (layers, k, 3),
                    ("layer", "query", "xyz"),
                    "float32",
                    (layers, k, 3),
                    units="m",
                    about=f"points that are projected into the cameras, {self.frame}",
                ),
                ArraySpec(
                    "query/camera_weights",
                    shape,
                    ("layer", "query", "camera", "level"),
                    "float16",
                    shape,
                    about="weight of each camera and level, 0 where the point is not visible",
                ),
                ArraySpec(
                    "query/sampled",
                    (layers, k, self.query_channels),
                    ("layer", "query", "channel"),
                    "float16",
                    (layers, k, self.query_channels),
                    about="weighted sum of the pyramid samples",
                ),
            ]
        return []

    def plain(self) -> list[str]:
        """Paths of arrays whose rows are whole and stored as they are given: no padding, no codes, no fixed point."""
        coded = ("values", "affine", "index", "count")
        return [path for path, spec in self.arrays().items() if spec.kind not in coded and path != "query/sampling"]

    def constants(self) -> dict[str, ArraySpec]:
        """Arrays without a frame dimension by path."""
        specs = []
        if self.code is not None:
            specs += [spec for name, channels in self.maps.items() for spec in code_arrays(name, channels, self.code)]
        if self.reading == "bev" and self.bev is not None:
            shape = (self.layers, self.bev[2], self.bev[2])
            about = "value projection that a layer's queries read BEV features through"
            specs += [
                ArraySpec("decoder/value_proj_weight", shape, ("layer", "out", "in"), "float32", shape, about=about),
                ArraySpec("decoder/value_proj_bias", shape[:2], ("layer", "out"), "float32", shape[:2]),
            ]
        return {spec.path: spec for spec in specs}

    def frame_keys(self) -> set[str]:
        """Paths of the arrays that a frame given to the writer includes."""
        return {path for path, spec in self.arrays().items() if spec.kind != "count"}


def _pair(stride: Any) -> tuple[float, float]:
    """Rows and columns of a stride that may be given as one number."""
    rows, columns = (stride, stride) if isinstance(stride, (int, float)) else stride
    return rows, columns


def sampling_attributes() -> dict[str, float]:
    """CF packing attributes of sampling locations."""
    low, high = SAMPLING_RANGE
    return {"scale_factor": (high - low) / 65535, "add_offset": low}
