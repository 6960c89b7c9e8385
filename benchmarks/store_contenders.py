"""Ways to keep an expert's frames on disk, each with a writer and a reader of one frame by number.

``focal ...`` are the project's store, named by ``dump.values``: read as a training reads it, with what follows the comma decoded in
the reading process, or read by zarr-python. ``dense ...`` include every cell as float16 with the same queries, the way features
are usually cached.
"""

import os
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from torch import Tensor

from benchmarks.store_frames import RealFrame, real_frames
from pipeline.dumping.learning import SAMPLE, CellSample, learn_code
from pipeline.dumping.recipe import schema_of
from pipeline.dumping.settings import DumpSettings
from pipeline.expert.rows import focal_cells, store_row
from pipeline.focal.codes import FeatureCode
from pipeline.models.build import load_config
from store_schema import StoreReader, StoreSchema, StoreWriter
from store_schema.reader import open_arrays, read_counts, read_row

Row = dict[str, np.ndarray]
Read = Callable[[int], Any]


@dataclass(frozen=True)
class Source:
    """Source of the benchmark's frames, and settings of the store; ``centre`` as of ``real_frames``."""

    config: Path
    root: Path
    version: str
    scratch: Path
    settings: DumpSettings
    centre: float
    focal_frames: int
    dense_frames: int

    def frames_of(self, name: str) -> int:
        """Number of frames that a contender keeps."""
        return self.focal_frames if name.startswith("focal") else self.dense_frames

    def folder(self, name: str) -> Path:
        """Folder of a contender; several readers of one store share the folder."""
        return self.scratch / written(name).replace(" ", "-")


def written(name: str) -> str:
    """The contender whose files a contender reads: what stands before the comma."""
    return name.partition(",")[0]


@dataclass(frozen=True)
class Cost:
    """Cost of a contender; peaks are of a process that only wrote or only read the files.

    Attributes:
        bytes_per_frame: bytes on disk per frame.
        write_mb_s: MB on disk per second of writing, synced.
        warm_ms, cold_ms: median times of reading a random frame, from the page cache or without it.
        pread_warm_ms, pread_cold_ms: median times of one raw pread of as many bytes, taking turns with the above.
        write_peak_mib, read_peak_mib: most memory of the process.
    """

    bytes_per_frame: float
    write_mb_s: float
    warm_ms: float
    cold_ms: float
    pread_warm_ms: float
    pread_cold_ms: float
    write_peak_mib: float
    read_peak_mib: float


def settings_of(source: Source, name: str) -> DumpSettings:
    """Settings by which a contender's store is dumped."""
    if name.startswith("dense"):
        return replace(source.settings, layout="dense", values="float16", frames_per_shard=source.dense_frames)
    values = written(name).removeprefix("focal ")
    return replace(source.settings, values=values, frames_per_shard=source.focal_frames)


def frames_of(source: Source) -> Iterator[RealFrame]:
    """The real frames."""
    frames, queries = source.scratch / "frames", source.settings.rule.num_queries
    return real_frames(source.config, source.root, source.version, frames, queries, source.centre)


def stored_maps(source: Source, frame: RealFrame, schema: StoreSchema) -> dict[str, tuple[Tensor, Tensor]]:
    """Feature (..., C, H, W) and stored cells (..., H, W) by map."""
    rule, pc_range = source.settings.rule, load_config(source.config).pc_range
    bev, levels = focal_cells(frame.expert, rule, pc_range, frame.lidar2img, schema.layers)
    assert frame.expert.bev is not None and bev is not None
    features, cells = [frame.expert.bev, *frame.expert.pv], [bev, *levels]
    return dict(zip(schema.maps, zip(features, cells, strict=True), strict=True))


def learned(source: Source, schema: StoreSchema, leave_out: int = 0) -> Row:
    """Constants of the features' codes, learned from the real frames but the last ``leave_out``; none where features are not coded."""
    if schema.code is None:
        return {}
    frames = list(frames_of(source))
    frames = frames[: len(frames) - leave_out]
    samples = {name: CellSample(-(-SAMPLE // len(frames))) for name in schema.maps}
    for frame in frames:
        for name, (feature, cells) in stored_maps(source, frame, schema).items():
            samples[name].add(feature, cells)
    codes = (learn_code(name, schema.code, sample.features()).constants(name) for name, sample in samples.items())
    return {path: array for constants in codes for path, array in constants.items()}


def rows(source: Source, name: str) -> tuple[Any, dict[str, Row], Row]:
    """Schema, the real frames as store rows by token, and the codes' constants."""
    settings, cfg = settings_of(source, name), load_config(source.config)
    schema, made, constants, codes = None, {}, {}, {}
    for frame in frames_of(source):
        if schema is None:
            schema = schema_of(frame.expert, settings)
            constants = learned(source, schema)
            codes = {path: FeatureCode(code) for path, code in schema.codes(constants).items()}
        cells = focal_cells(frame.expert, settings.rule, cfg.pc_range, frame.lidar2img, schema.layers)
        made[frame.token] = store_row(frame.expert, cells, schema, codes)
    return schema, made, constants


def repeated(made: dict[str, Row], count: int) -> Iterator[tuple[str, Row]]:
    """The real frames over and over, under tokens of their own."""
    real = list(made.items())
    for i in range(count):
        token, row = real[i % len(real)]
        yield f"{token[:26]}{i:06d}", row


def write(source: Source, name: str) -> dict[str, float]:
    """Write a contender's files; meant for a process of its own."""
    schema, made, codes = rows(source, name)
    folder, count = source.folder(name), source.frames_of(name)
    start = time.perf_counter()
    WRITERS[name](folder, schema, made, codes, count)
    for path in files(folder):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    size = sum(path.stat().st_size for path in files(folder))
    return {"bytes_per_frame": size / count, "write_mb_s": size / seconds / 1e6, "write_peak_mib": peak_mib()}


def read(source: Source, name: str, reads: int, cold_reads: int) -> dict[str, float]:
    """Time random reads of a contender, taking turns with a pread of as many bytes; meant for a process of its own."""
    folder, count = source.folder(name), source.frames_of(name)
    size = sum(path.stat().st_size for path in files(folder)) // count
    read_frame, raw = READERS[name](folder), source.scratch / "raw"
    with open(raw, "wb") as file:  # as many frames as the contender has, no zeros that a file system could leave out
        block = np.random.default_rng(0).bytes(size)
        for _ in range(count):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    descriptor = os.open(raw, os.O_RDONLY)

    def pread(i: int) -> bytes:
        return os.pread(descriptor, size, i * size)

    for i in range(count):
        read_frame(i), pread(i)
    order = np.random.default_rng(1).integers(0, count, reads + cold_reads).tolist()
    times: dict[str, list[float]] = {key: [] for key in ("warm_ms", "cold_ms", "pread_warm_ms", "pread_cold_ms")}
    for turn, i in enumerate(order):
        kind = "warm_ms" if turn < reads else "cold_ms"
        for key, function in ((kind, read_frame), (f"pread_{kind}", pread)):
            if kind == "cold_ms":
                forget([raw, *files(folder)])
            start = time.perf_counter()
            function(i)
            times[key].append((time.perf_counter() - start) * 1e3)
    os.close(descriptor)
    raw.unlink()
    return {key: statistics.median(values) for key, values in times.items()} | {"read_peak_mib": peak_mib()}


def files(folder: Path) -> list[Path]:
    """All files below a folder."""
    return [path for path in folder.rglob("*") if path.is_file()]


def forget(paths: list[Path]) -> None:
    """Drop files, which must be synced, from the page cache."""
    for path in paths:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def peak_mib() -> float:
    """Most memory that this process has held, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _write_store(folder: Path, schema: Any, made: dict[str, Row], codes: Row, count: int) -> None:
    frames = dict(repeated(made, count))
    constants = {path: np.ones(spec.shape, spec.dtype) for path, spec in schema.constants().items()} | codes
    manifest = {"expert": {"weights": "random"}, "focal": {}}
    with StoreWriter(folder, schema, manifest, {"scene": list(frames)}, count) as writer:
        writer.write_constants(constants)
        writer.write_shard(0, frames)
        writer.finalise({})


def _write_npy(folder: Path, schema: Any, made: dict[str, Row], codes: Row, count: int) -> None:
    folder.mkdir(parents=True)
    arrays: dict[str, np.memmap] = {}
    for i, (_, row) in enumerate(repeated(made, count)):
        for path, array in row.items():
            if path not in arrays:
                file = folder / f"{path.replace('/', '.')}.npy"
                arrays[path] = np.lib.format.open_memmap(file, "w+", array.dtype, (count, *array.shape))
            arrays[path][i] = array
    for memory in arrays.values():
        memory.flush()


def _write_torch(folder: Path, schema: Any, made: dict[str, Row], codes: Row, count: int) -> None:
    folder.mkdir(parents=True)
    for i, (_, row) in enumerate(repeated(made, count)):
        torch.save({path: torch.from_numpy(array) for path, array in row.items()}, folder / f"{i}.pt")


def _write_hdf5(folder: Path, schema: Any, made: dict[str, Row], codes: Row, count: int) -> None:
    import h5py

    folder.mkdir(parents=True)
    with h5py.File(folder / "frames.h5", "w") as file:
        for i, (_, row) in enumerate(repeated(made, count)):
            for path, array in row.items():
                if path not in file:
                    file.create_dataset(path, (count, *array.shape), array.dtype, chunks=(1, *array.shape))
                file[path][i] = array


def _read_store(folder: Path) -> Read:
    reader = StoreReader(folder)
    tokens = reader.tokens
    return lambda i: reader.read(tokens[i], decode=False)


def _read_by_zarr(folder: Path) -> Read:
    schema = StoreReader(folder).schema
    arrays = open_arrays(zarr.open_group(folder, mode="r"), schema)
    counts = read_counts(arrays, schema)
    return lambda i: read_row(arrays, counts, schema, i)


def _read_npy(folder: Path) -> Read:
    arrays = [np.load(path, mmap_mode="r") for path in files(folder)]
    return lambda i: [np.array(array[i]) for array in arrays]


def _read_torch(folder: Path) -> Read:
    return lambda i: torch.load(folder / f"{i}.pt", weights_only=True)


def _read_hdf5(folder: Path) -> Read:
    import h5py

    file = h5py.File(folder / "frames.h5")
    names: list[str] = []
    file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    return lambda i: [file[name][i] for name in names]


def _read_decoded(folder: Path) -> Read:
    reader = StoreReader(folder)
    tokens = reader.tokens
    return lambda i: reader.read(tokens[i])


WRITERS: dict[str, Callable[[Path, Any, dict[str, Row], Row, int], None]] = {
    "focal pq": _write_store,
    "focal pca": _write_store,
    "focal uint8": _write_store,
    "focal float16": _write_store,
    "dense zarr": _write_store,
    "dense npy memmap": _write_npy,
    "dense torch.save": _write_torch,
    "dense hdf5": _write_hdf5,
}
READERS: dict[str, Callable[[Path], Read]] = {
    "focal pq": _read_store,
    "focal pq, decoded": _read_decoded,
    "focal pca": _read_store,
    "focal uint8": _read_store,
    "focal uint8, zarr-python": _read_by_zarr,
    "focal float16": _read_store,
    "dense zarr": _read_by_zarr,
    "dense npy memmap": _read_npy,
    "dense torch.save": _read_torch,
    "dense hdf5": _read_hdf5,
}
