"""Comparison of stored frames with the outputs of the expert, run again."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.data.frames import frame_batches
from pipeline.data.images import check_images
from pipeline.data.index import FrameIndex
from pipeline.data.source import FrameSource
from pipeline.expert.load import check_identity, load_expert
from pipeline.expert.rows import focal_cells, store_row
from pipeline.focal.codes import FeatureCode
from pipeline.focal.rule import FocalRule
from pipeline.models.build import load_config
from pipeline.models.pairs import check_data
from store_schema import StoreReader
from store_schema.coding import decoded


@dataclass
class ArrayError:
    """Differences between an array's stored and recomputed values, over all frames compared.

    Attributes:
        values: number of values compared; of focal maps only in cells that both sides have.
        largest: largest absolute difference.
        cells: number of cells stored or recomputed but not both, for focal maps.
    """

    values: int = 0
    largest: float = 0.0
    cells: int = 0
    _difference: float = 0.0
    _size: float = 0.0

    @property
    def relative(self) -> float:
        """Norm of the difference over the norm of the recomputed values."""
        return float(np.sqrt(self._difference / self._size)) if self._size else float(self._difference > 0)

    def add(self, stored: np.ndarray, again: np.ndarray) -> None:
        """Compare two arrays of one shape."""
        a, b = stored.astype(np.float64), again.astype(np.float64)
        self.values += a.size
        self.largest = max(self.largest, float(np.abs(a - b).max(initial=0)))
        self._difference += float(((a - b) ** 2).sum())
        self._size += float((b**2).sum())


def recompute(
    reader: StoreReader, config: Path, checkpoint: Path, index: Path, root: Path, count: int, seed: int = 0
) -> dict[str, ArrayError]:
    """Recompute ``count`` random frames; each with the history of its scene from the first frame on, as stage 1 does.

    Args:
        seed: seed of the choice of frames.

    Returns:
        errors by array; ``index`` arrays count in their map's ``cells``.

    Raises:
        FD3DError: config, checkpoint or index did not make the store, or the store was made with random weights.
    """
    made = reader.manifest
    cfg = load_config(config)
    check_identity(made.get("expert", {}), cfg, checkpoint, reader.storage)
    frames = FrameIndex.load(index, root)
    frames.check_made(made, reader.storage)
    check_data(cfg, checkpoint, frames, root)
    chosen = set(np.random.default_rng(seed).permutation(reader.tokens)[:count].tolist())
    source = FrameSource(index, root, made["data"]["split"])
    rows = [row for tokens in made["scenes"].values() for row in _up_to(frames, tokens, chosen)]
    check_images(frames, root, rows, index)
    position = {row: i for i, row in enumerate(frames.select(source.split))}
    rule = FocalRule(**made["focal"])
    expert = load_expert(cfg, checkpoint, rule.num_queries, made["expert"]["autocast"])
    codes = {name: FeatureCode.on(code, expert.device) for name, code in reader.codes.items()}
    errors: dict[str, ArrayError] = {}
    for batch in frame_batches(cfg, source, [position[row] for row in rows], 0):
        (frame,), _ = expert.run(batch)
        token, meta = batch["data_samples"][0].token, batch["data_samples"][0].frames[-1]
        if token in chosen:
            lidar2img = torch.as_tensor(meta["lidar2img"], dtype=torch.float32, device=expert.device)
            cells = focal_cells(frame, rule, cfg.pc_range, lidar2img, reader.schema.layers)
            again = decoded(store_row(frame, cells, reader.schema, codes), reader.codes)
            compare(errors, reader.read(token), again)
    return errors


def _up_to(frames: FrameIndex, tokens: Iterable[str], chosen: set[str]) -> list[int]:
    """Index rows of a scene up to its last chosen frame; none without one."""
    tokens = list(tokens)
    last = max((i for i, token in enumerate(tokens) if token in chosen), default=-1)
    return [frames.row(token) for token in tokens[: last + 1]]


def compare(errors: dict[str, ArrayError], stored: Mapping[str, np.ndarray], again: Mapping[str, Any]) -> None:
    """Add the differences of a frame, decoded on both sides, to the errors by array; ``index`` arrays count in ``cells``."""
    for path, new in again.items():
        old = stored[path]
        if path.endswith("/index"):
            continue
        error = errors.setdefault(path, ArrayError())
        if path.endswith("/values"):
            name = path.replace("/values", "/index")
            _, a, b = np.intersect1d(stored[name], again[name], assume_unique=True, return_indices=True)
            error.cells += len(old) + len(new) - 2 * len(a)
            old, new = old[a], new[b]
        error.add(old, new)
