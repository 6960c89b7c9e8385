"""Size of a store and the work to make one, estimated before anything is run.

Shapes come from the expert's config, run on torch's meta device (a detector of another project on black images). What shapes cannot tell is measured: the share of cells
that the focal areas take, and how far each array compresses. Both come from a finished store, or from figures measured on
real frames at BEVFormer-Base size (``COVERAGE``, ``RATIOS``; docs/planning.md says how).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config

from pipeline.cost.cameras import Cameras
from pipeline.cost.complexity import on_meta
from pipeline.cost.early import share_of
from pipeline.cost.foreign import foreign_frame
from pipeline.dumping.recipe import schema_of
from pipeline.dumping.settings import DumpSettings
from pipeline.errors import counted
from pipeline.expert import TappedExpert, build_adapter
from pipeline.expert.declared import is_foreign
from store_schema import ArraySpec, StoreReader, StoreSchema
from store_schema.layout import plan_shards

# Share of cells stored, by map; a level that is not here is taken for the coarsest.
COVERAGE = {"bev": 0.041, "pv/0": 0.077, "pv/1": 0.082, "pv/2": 0.093, "pv/3": 0.113}
# Bytes on disk per raw byte of what is stored, by the array's name without its map.
RATIOS = {
    "values": 1.0,
    "affine": 0.79,
    "index": 0.3,
    "boxes": 0.9,
    "score": 0.9,
    "label": 0.5,
    "reference": 0.9,
    "features": 0.91,
    "sampling": 0.85,
    "attention": 0.85,
}


@dataclass(frozen=True)
class Measured:
    """Figures of a finished store, taken for the next one.

    Attributes:
        coverage: share of cells stored, by map (``bev``, ``pv/0``, ...).
        ratios: bytes on disk per raw byte of what is stored, by the array's path.
        fill: share of the rows of full shards that have frames: a shard includes whole scenes.
    """

    coverage: Mapping[str, float]
    ratios: Mapping[str, float]
    fill: float = 1.0

    @classmethod
    def of(cls, path: Path) -> "Measured":
        """Figures of the store at ``path``.

        Raises:
            StoreError: the store is not finished.
        """
        reader = StoreReader(path)
        manifest, schema = reader.manifest, reader.schema
        frames, rows = len(reader.tokens), manifest["frames_per_shard"]
        ratios = {}
        for name, spec in schema.arrays().items():
            files = [
                file["bytes"]
                for shard in manifest["shards"].values()
                for at, file in shard.items()
                if at.startswith(f"{name}/c/")
            ]
            raw = raw_bytes(spec, manifest["coverage"]) * frames
            if raw:
                ratios[name] = (sum(files) - len(files) * index_bytes(spec, rows)) / raw
        *full, last = plan_shards(manifest["scenes"], rows)  # what is left for the last tells nothing of another store
        left = sum(len(manifest["scenes"][name]) for name in last)
        return cls(manifest["coverage"], ratios, (frames - left) / (len(full) * rows) if full else 1.0)


@dataclass(frozen=True)
class ArrayPlan:
    """Bytes of one array.

    Attributes:
        frame: bytes on disk per frame.
        dense: bytes per frame, uncompressed, every cell as float16.
        total: bytes on disk, shard indices included.
    """

    path: str
    frame: float
    dense: float
    total: float


@dataclass(frozen=True)
class StorePlan:
    """A store of ``frames`` frames: its arrays, and the numbers of its shards and of their files."""

    frames: int
    arrays: list[ArrayPlan]
    files: int
    shards: int

    @property
    def total(self) -> float:
        """Bytes on disk."""
        return sum(array.total for array in self.arrays)

    @property
    def frame(self) -> float:
        """Bytes on disk per frame."""
        return self.total / self.frames

    @property
    def dense(self) -> float:
        """Bytes per frame with every cell as float16."""
        return sum(array.dense for array in self.arrays)

    @property
    def files_per_gb(self) -> float:
        """Shard files per 1e9 bytes; DVC is quick up to some 50."""
        return self.files / self.total * 1e9


@dataclass(frozen=True)
class Work:
    """Work to produce the expert's targets.

    Attributes:
        passes: frames that the expert runs.
        hours: hours of one worker (one GPU).
        elapsed: hours with all workers.
    """

    passes: int
    hours: float
    elapsed: float


def expert_schema(cfg: Config, cameras: Cameras, settings: DumpSettings) -> StoreSchema:
    """Sizes of the store that ``fd3d dump`` would make, without running the expert on data.

    Raises:
        FD3DError: the config is no detector, or has no adapter that fits it.
    """
    adapter = build_adapter(cfg)
    if is_foreign(cfg):
        return schema_of(foreign_frame(cfg, cameras, settings.rule.num_queries), settings, cameras.names)
    with on_meta(cfg, cameras) as (model, batch, _):
        expert = TappedExpert(model, adapter, settings.rule.num_queries)
        with expert.tapped() as seen:
            model(**batch, mode="tensor")
        (frame,) = adapter.read(model, seen, batch["data_samples"], settings.rule.num_queries)
    return schema_of(frame, settings, cameras.names)


def plan_store(
    schema: StoreSchema,
    frames: int,
    frames_per_shard: int,
    measured: Measured,
    scenes: Mapping[str, Sequence[Any]] | None = None,
) -> StorePlan:
    """Bytes and files of a store; ``measured.coverage`` names every map of a focal schema.

    Args:
        scenes: frames of each scene, which tell the shards; None estimates these by ``measured.fill``.

    Raises:
        StoreError: a scene has more frames than a shard.
    """
    shards = math.ceil(frames / (frames_per_shard * measured.fill))
    if scenes:
        shards = len(plan_shards(scenes, frames_per_shard))
    arrays = []
    for path, spec in schema.arrays().items():
        ratio = measured.ratios.get(path, RATIOS.get(path.rsplit("/", 1)[-1], 1.0))
        frame = raw_bytes(spec, measured.coverage) * ratio
        dense = 0.0
        if spec.kind == "values":
            dense = spec.attributes["cells"] * schema.maps[path.rsplit("/", 1)[0]] * 2.0
        elif spec.kind == "plain":
            dense = raw_bytes(spec, {})
        total = frame * frames + shards * index_bytes(spec, frames_per_shard)
        arrays.append(ArrayPlan(path, frame, dense, total))
    arrays.append(ArrayPlan("frame/token", 32, 0, 32 * shards * frames_per_shard))
    for path, spec in schema.constants().items():
        size = float(np.prod(spec.shape)) * np.dtype(spec.dtype).itemsize
        arrays.append(ArrayPlan(path, 0, 0, size))
    return StorePlan(frames, arrays, shards * len(schema.arrays()), shards)


def raw_bytes(spec: ArraySpec, coverage: Mapping[str, float]) -> float:
    """Uncompressed bytes per frame of an array's stored part."""
    size = np.dtype(spec.dtype).itemsize
    if spec.kind in ("plain", "count"):
        return float(np.prod(spec.shape)) * size
    name = spec.path.rsplit("/", 1)[0]
    return coverage[name] * spec.attributes["cells"] * float(np.prod(spec.shape[1:])) * size


def index_bytes(spec: ArraySpec, frames_per_shard: int) -> int:
    """Bytes of a shard file's index: 16 per chunk and a checksum."""
    if spec.kind == "count":
        return 20
    chunks = math.prod(-(-n // c) for n, c in zip(spec.shape, spec.chunk, strict=True))
    return 16 * chunks * frames_per_shard + 4


def plan_work(passes: int, rate: float, workers: int) -> Work:
    """Hours for a number of expert passes.

    Args:
        rate: frames per second of one worker.
    """
    hours = passes / rate / 3600
    return Work(passes, hours, hours / workers)


def coverage_of(given: list[str] | None, schema: StoreSchema, known: Mapping[str, float]) -> dict[str, float]:
    """Coverage by map of a focal store: from ``MAP=SHARE`` strings, else from ``known``, else from ``COVERAGE``.

    Raises:
        FD3DError: a string is not of this form.
    """
    names = [path.removesuffix("/count") for path, spec in schema.arrays().items() if spec.kind == "count"]
    coarsest = list(COVERAGE.values())[-1]
    coverage = {name: known.get(name, COVERAGE.get(name, coarsest)) for name in names}
    return coverage | dict(share_of(text, names) for text in given or ())


def table(plan: StorePlan, coverage: Mapping[str, float]) -> list[str]:
    """Lines: a row per array, and totals."""
    rows = [f"{'array':30} {'stored':>7} {'kB/frame':>10} {'dense fp16':>12} {'GB':>10}"]
    for array in plan.arrays:
        share = coverage.get(array.path.rsplit("/", 1)[0])
        stored = "" if share is None else f"{100 * share:.1f} %"
        rows.append(
            f"{array.path:30} {stored:>7} {array.frame / 1e3:10.2f} {array.dense / 1e3:12.2f} {array.total / 1e9:10.3f}"
        )
    rows.append(f"{'all':30} {'':7} {plan.frame / 1e3:10.2f} {plan.dense / 1e3:12.2f} {plan.total / 1e9:10.3f}")
    rows.append("")
    rows.append(
        f"{counted(plan.frames, 'frame')}, {plan.dense / plan.frame:.1f} times smaller than dense fp16 "
        f"({plan.dense * plan.frames / 1e9:.3g} GB); {counted(plan.files, 'file')}, {plan.files_per_gb:.1f} per GB"
    )
    return rows
