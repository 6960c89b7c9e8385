"""Session of one process of a dump: load the expert, run it over a shard's scenes, write the shard."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet3d.registry import DATASETS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from pipeline.data.frames import collate, frame_dataset
from pipeline.data.source import FrameSource
from pipeline.dumping.coverage import Annotated, Counts, frame_coverage, join_counts, to_plain
from pipeline.dumping.learning import SAMPLE, CellSample, learn_code
from pipeline.dumping.moments import shard_moments
from pipeline.dumping.recipe import library_versions, schema_of
from pipeline.dumping.settings import DumpSettings
from pipeline.dumping.shared import Shared
from pipeline.errors import FD3DError
from pipeline.expert import ExpertFrame
from pipeline.expert.load import load_expert
from pipeline.expert.rows import (
    areas_beside,
    check_finite,
    focal_cells,
    joined_cells,
    level_cells,
    store_row,
    stored_constants,
)
from pipeline.focal.codes import FeatureCode
from pipeline.models.build import note_sources
from store_schema import ShardWriter, StoreSchema


@dataclass(frozen=True)
class Job:
    """Settings and paths that a process needs to run the expert; small, and sent to other processes and machines.

    Attributes:
        config: text of the expert's config, what it inherits included.
        checkpoint: a path that every worker can read; None for random weights.
        source: paths that every worker can read.
        threads: torch threads. The last bits of sums on a CPU depend on this number, so all processes have the same.
        decoders: threads or processes that decode images ahead.
        libraries: versions that every worker must have, name and version.
        shared: what every worker compares with its own; None in the main process.
    """

    config: str
    checkpoint: Path | None
    source: FrameSource
    settings: DumpSettings
    threads: int
    decoders: int
    libraries: tuple[tuple[str, str], ...]
    shared: Shared | None = None


@dataclass
class ShardResult:
    """Result of a shard's inference.

    Attributes:
        rows: by token, as the writer takes them.
        counts: the coverage's counts of each frame.
        own: of each row, the cells of dense maps that are no padding; empty where all cells count.
    """

    rows: dict[str, dict[str, np.ndarray]]
    counts: list[Counts]
    own: list[dict[str, np.ndarray]] = field(default_factory=list)


class Session:
    """The expert on this process's device, and the frames that it runs over.

    Raises:
        FD3DError: versions of libraries or code or a file differ from the main process's, or a file cannot be read here.
    """

    def __init__(self, job: Job) -> None:
        here = library_versions()
        for name, wanted in job.libraries:
            if here[name] != wanted:
                raise FD3DError(f"a worker has {name} {here[name]}, the dump {wanted}; use one environment for all")
        if job.shared is not None:
            job.shared.check()
        torch.set_num_threads(job.threads)
        self.job, self.cfg = job, Config.fromstring(job.config, ".py")
        note_sources(self.cfg, "of the dump")
        init_default_scope("mmdet3d")
        settings = job.settings
        self.expert = load_expert(self.cfg, job.checkpoint, settings.rule.num_queries, settings.autocast, settings.seed)
        self.dataset = DATASETS.build(frame_dataset(self.cfg, job.source, train=False))
        self.index = self.dataset.index
        self.number = {self.index[row].token: i for i, row in enumerate(self.dataset.rows)}

    def probe(self, token: str) -> tuple[StoreSchema, dict[str, np.ndarray]]:
        """The store's shape and its constants, from running a scene's first frame."""
        torch.set_num_threads(self.job.threads)
        (frame,), _ = self.expert.run(collate([self.dataset[self.number[token]]]))
        constants = self.expert.adapter.constants(self.expert.model)
        schema = schema_of(frame, self.job.settings, self.index.cameras, self.index.reference)
        return schema, stored_constants(constants, schema)

    def learn(
        self, schema: StoreSchema, scenes: Sequence[Sequence[str]], report: Callable[[int], None]
    ) -> dict[str, np.ndarray]:
        """Constants of the codes of all maps, from running the expert over some scenes.

        Args:
            scenes: tokens of each scene in time order.
            report: called with the number of frames done.

        Raises:
            FD3DError: features that are not finite, or too few cells.
        """
        assert schema.code is not None
        torch.set_num_threads(self.job.threads)
        tokens = [token for scene in scenes for token in scene]
        samples = {name: CellSample(-(-SAMPLE // len(tokens))) for name in schema.maps}
        for done, (token, batch) in enumerate(zip(tokens, self.decoded(tokens), strict=True), 1):
            (frame,), _ = self.expert.run(batch)
            check_finite(frame, token)
            bev, levels = self._cells(schema, frame, batch["data_samples"][0].frames[-1])
            if frame.bev is not None and bev is not None:
                samples["bev"].add(frame.bev, bev)
            for i, pair in enumerate(zip(frame.pv, levels, strict=True)):
                samples[f"pv/{i}"].add(*pair)
            report(done)
        constants: dict[str, np.ndarray] = {}
        for name, sample in samples.items():
            constants |= learn_code(name, schema.code, sample.features()).constants(name)
        return constants

    def look(self, schema: StoreSchema, scenes: Sequence[Sequence[str]], report: Callable[[int], None]) -> float | None:
        """Run the expert over scenes up to the first frame that has a cell to store.

        Args:
            scenes: tokens of each scene in time order.
            report: called with the number of frames done.

        Returns:
            None where a frame has a cell, else the highest score of all frames.

        Raises:
            FD3DError: features that are not finite, with the frame's token.
        """
        torch.set_num_threads(self.job.threads)
        highest, tokens = 0.0, [token for scene in scenes for token in scene]
        for done, (token, batch) in enumerate(zip(tokens, self.decoded(tokens), strict=True), 1):
            (frame,), _ = self.expert.run(batch)
            check_finite(frame, token)
            bev, levels = self._cells(schema, frame, batch["data_samples"][0].frames[-1])
            if any(bool(cells.any()) for cells in (*levels, *([] if bev is None else [bev]))):
                return None
            highest = max(highest, float(frame.score.max()))
            report(done)
        return highest

    def _cells(
        self, schema: StoreSchema, frame: ExpertFrame, meta: dict[str, Any]
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """Cells that are stored of a frame."""
        lidar2img = torch.as_tensor(meta["lidar2img"], dtype=torch.float32, device=self.expert.device)
        return focal_cells(frame, self.job.settings.rule, self.cfg.pc_range, lidar2img, schema.layers)

    def infer(
        self,
        writer: ShardWriter,
        tokens: Sequence[str],
        batches: Iterator[dict[str, Any]],
        report: Callable[[int], None],
    ) -> ShardResult:
        """Run the expert over a shard.

        Args:
            writer: writer of the store.
            tokens: tokens of the shard's frames; whole scenes in time order.
            batches: collated batches, one per token in the same order.
            report: called with the number of frames done.

        Raises:
            FD3DError: features that are not finite, with the frame's token.
        """
        # OpenMP keeps this number per thread
        torch.set_num_threads(self.job.threads)
        result, converting = ShardResult({}, []), None
        codes = {name: FeatureCode.on(code, self.expert.device) for name, code in writer.codes.items()}
        # a thread makes a frame's row while the next frame is inferred; at most one frame waits for it
        with ThreadPoolExecutor(1, "rows", torch.set_num_threads, (self.job.threads,)) as pool:
            for done, token in enumerate(tokens, 1):
                batch = next(batches)
                (frame,), _ = self.expert.run(batch)
                if converting is not None:
                    converting.result()
                converting = pool.submit(
                    self._convert, writer.schema, codes, frame, batch["data_samples"][0].frames[-1], token, result
                )
                report(done)
            if converting is not None:
                converting.result()
        return result

    def again(self, writer: ShardWriter, shard: int) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Any]]:
        """Rows by token of a shard and the sums over the rows, as a dump would write them now.

        Raises:
            FD3DError: see :meth:`infer`.
        """
        tokens = shard_tokens(writer, shard)
        result = self.infer(writer, tokens, self.decoded(tokens), lambda frames: None)
        return result.rows, sums_of(writer, result)

    def _convert(
        self,
        schema: StoreSchema,
        codes: Mapping[str, FeatureCode],
        frame: ExpertFrame,
        meta: dict[str, Any],
        token: str,
        into: ShardResult,
    ) -> None:
        """Check a frame and add it to a shard's result."""
        check_finite(frame, token)
        rule, pc_range = self.job.settings.rule, self.cfg.pc_range
        lidar2img = torch.as_tensor(meta["lidar2img"], dtype=torch.float32, device=self.expert.device)
        annotated = Annotated.of(self.index[self.index.row(token)], pc_range)
        boxes = torch.from_numpy(annotated.boxes).to(self.expert.device)
        areas, around = areas_beside(frame, rule, boxes, pc_range, lidar2img)
        cells = joined_cells(frame, areas, rule, schema.layers)
        into.rows[token] = store_row(frame, cells, schema, codes, token)
        into.own.append(level_cells(frame) if schema.layout == "dense" else {})
        into.counts.append(frame_coverage(frame, areas, around, cells, annotated, pc_range))

    def decoded(self, tokens: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Collated batches of one frame each, decoded ahead by threads: a worker of dask may not have child processes."""
        numbers = [self.number[token] for token in tokens]
        if not self.job.decoders:
            yield from (collate([self.dataset[i]]) for i in numbers)
            return
        ahead: deque[Any] = deque()
        with ThreadPoolExecutor(self.job.decoders) as pool:
            for i in numbers:
                ahead.append(pool.submit(self.dataset.__getitem__, i))
                if len(ahead) > 2 * self.job.decoders:
                    yield collate([ahead.popleft().result()])
            while ahead:
                yield collate([ahead.popleft().result()])


def shard_tokens(writer: ShardWriter, shard: int) -> list[str]:
    """Tokens of a shard in the order of its rows."""
    return writer.layout.tokens(shard)


def sums_of(writer: ShardWriter, result: ShardResult) -> dict[str, Any]:
    """Sums over a shard's rows, as plain values."""
    return {
        "moments": shard_moments(result.rows.values(), writer.codes, result.own),
        "coverage": to_plain(join_counts(result.counts)),
    }


def write(writer: ShardWriter, shard: int, result: ShardResult) -> None:
    """Write a shard, with the sums over its rows in its done-marker."""
    writer.write(shard, result.rows, sums_of(writer, result))


_building = threading.Lock()


@lru_cache(maxsize=1)
def _session(job: Job) -> Session:
    return Session(job)


def session_of(job: Job) -> Session:
    """This process's session of a job, made at the first call."""
    with _building:
        return _session(job)


def forget_sessions() -> None:
    """Free the expert's memory."""
    _session.cache_clear()
