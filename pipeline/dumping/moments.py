"""Channel statistics as sums per shard, so that a resumed dump ends with the bits of an undisturbed one."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any

import numpy as np
import torch

from pipeline.expert.rows import stored_values
from store_schema import MapCode


@dataclass
class RunningMoments:
    """Sums per channel over all values seen, in float64.

    Attributes:
        count: values per channel.
        sum, square: (C,) sums of the values and of their squares.
    """

    count: int
    sum: np.ndarray
    square: np.ndarray

    @classmethod
    def zero(cls, channels: int) -> "RunningMoments":
        """Sums before any value."""
        return cls(0, np.zeros(channels), np.zeros(channels))

    def add(self, values: np.ndarray) -> None:
        """Add values (n, C)."""
        # torch widens half precision, which numpy emulates; numpy adds in the same order whatever the processor
        wide = torch.from_numpy(values).float().double()
        self.count += len(wide)
        # of infinite values, which the writer refuses by the frame's token, no warning is wanted before
        with np.errstate(invalid="ignore", over="ignore"):
            self.sum += wide.numpy().sum(0)
            self.square += wide.square_().numpy().sum(0)

    def merge(self, other: "RunningMoments") -> None:
        """Add the sums of ``other``."""
        self.count += other.count
        self.sum += other.sum
        self.square += other.square

    def result(self) -> dict[str, list[float]]:
        """``mean`` and ``std``, each C values; std is at least 1e-6."""
        count = max(self.count, 1)
        mean = self.sum / count
        std = np.sqrt(np.maximum(self.square / count - mean**2, 1e-12))
        return {"mean": mean.tolist(), "std": std.tolist()}


def shard_moments(
    rows: Iterable[dict[str, np.ndarray]],
    codes: Mapping[str, MapCode] | None = None,
    own: Iterable[Mapping[str, np.ndarray]] = (),
) -> dict[str, dict[str, Any]]:
    """Sums over a shard's rows by map, as plain values; JSON keeps every bit of them.

    Args:
        codes: by map, of coded features.
        own: by row and map, which of a dense map's cells count (n,): those outside a camera's own image do not. None of them
            where images have one size.
    """
    moments: dict[str, RunningMoments] = {}
    every: dict[str, np.ndarray] = {}
    for row, counted in zip(rows, chain(own, repeat(every)), strict=False):
        for name in sorted({key.rsplit("/", 1)[0] for key in row if not key.startswith("query/")}):
            values = stored_values(row, name, codes or {})
            values = values[counted[name]] if name in counted else values
            moments.setdefault(name, RunningMoments.zero(values.shape[-1])).add(values)
    return {name: {"count": m.count, "sum": m.sum.tolist(), "square": m.square.tolist()} for name, m in moments.items()}


def join_moments(shards: Iterable[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, list[float]]]:
    """Mean and standard deviation by map, from the shards' sums in shard order."""
    joined: dict[str, RunningMoments] = {}
    for shard in shards:
        for name, sums in shard.items():
            part = RunningMoments(sums["count"], np.array(sums["sum"]), np.array(sums["square"]))
            joined.setdefault(name, RunningMoments.zero(len(part.sum))).merge(part)
    return {name: moments.result() for name, moments in joined.items()}
