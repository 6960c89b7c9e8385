"""Settings of a dump."""

from dataclasses import dataclass, replace
from typing import Any

from pipeline.errors import FD3DError
from pipeline.focal.rule import FocalRule
from store_schema.codes import CODED
from store_schema.schema import VALUES


@dataclass(frozen=True)
class DumpSettings:
    """Settings of the store; the focal rule decides which areas are stored."""

    rule: FocalRule
    """Queries kept and areas stored around them."""
    layout: str = "focal"
    """Layout of the maps: ``focal`` stores only the areas, ``dense`` the whole maps."""
    values: str = "float16"
    """Precision of the stored features: ``float16``; ``float32`` with twice the bytes and no rounding; or, in layout
    ``focal`` only, ``uint8`` with a scale and an offset per cell and half the bytes, or codes of ``code_bytes`` a cell: ``pq``
    (product quantisation) and ``pca`` (principal components)."""
    code_bytes: int | None = None
    """Bytes of a cell for ``pq`` and ``pca``; default: a quarter of the channels, of ``pq`` at most 32."""
    code_bits: int | None = None
    """Bits of a component for ``pca``, 8 or 4; default: 4."""
    code_frames: int = 100
    """Number of frames, at least, that codes are learned from, in whole scenes."""
    layers: int | None = None
    """Number of last decoder layers whose readings are stored with the cells that they read; default: all."""
    frames_per_shard: int = 40
    """Rows of one shard; a shard holds whole scenes, so this is at least the longest scene."""
    autocast: str | None = None
    """Precision of the expert on a GPU, ``bf16`` or ``fp16``; default: float32."""
    seed: int = 0
    """Seed of random weights when no checkpoint is given."""

    def __post_init__(self) -> None:
        if self.layout not in ("focal", "dense"):
            raise FD3DError(f"dump.layout is '{self.layout}'; use focal or dense")
        if self.values not in VALUES:
            raise FD3DError(f"dump.values is '{self.values}'; use {', '.join(VALUES)}")
        if self.layout == "dense" and not self.values.startswith("float"):
            raise FD3DError(
                f"dump.values is {self.values} but dump.layout is dense; dense maps are float16 or float32, or use layout focal"
            )
        if self.code_bytes is not None and self.values not in CODED:
            raise FD3DError(
                f"dump.code_bytes is {self.code_bytes}, but dump.values is {self.values}; it is for pq and pca"
            )
        if self.code_bits is not None and self.values != "pca":
            raise FD3DError(f"dump.code_bits is {self.code_bits}, but dump.values is {self.values}; it is for pca")
        if self.code_bits not in (None, 4, 8):
            raise FD3DError(f"dump.code_bits is {self.code_bits}; use 8 or 4")
        if self.code_bytes is not None and self.code_bytes < 1:
            raise FD3DError(f"dump.code_bytes is {self.code_bytes}; it must be at least 1")
        if self.code_frames < 1:
            raise FD3DError(f"dump.code_frames is {self.code_frames}; it must be at least 1")
        if self.frames_per_shard < 1:
            raise FD3DError(f"dump.frames_per_shard is {self.frames_per_shard}; it must be at least 1")
        if self.autocast not in (None, "bf16", "fp16"):
            raise FD3DError(f"dump.autocast is '{self.autocast}'; use bf16, fp16 or null")
        if self.seed < 0:
            raise FD3DError(f"dump.seed is {self.seed}; it must not be negative")
        if self.layers is not None and self.layers < 1:
            raise FD3DError(f"dump.layers is {self.layers}; it must be at least 1, or null for all layers")

    def for_trial(self) -> "DumpSettings":
        """Settings for a detector with random weights, see :meth:`~pipeline.focal.rule.FocalRule.for_trial`."""
        return replace(self, rule=self.rule.for_trial())


@dataclass(frozen=True)
class ClusterSettings:
    """Processes that run the expert; nothing here changes what is stored."""

    workers: int = 1
    """Number of processes that each load the expert and write shards; 1 runs it in the calling process, without dask."""
    threads_per_worker: int = 1
    """Torch threads of each worker."""
    address: str | None = None
    """Address of a running dask scheduler whose workers are used instead, for example tcp://host:8786."""

    def __post_init__(self) -> None:
        for name in ("workers", "threads_per_worker"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise FD3DError(f"dump.cluster.{name} is {getattr(self, name)}; it is a number of at least 1")
        if self.address is not None and self.workers != 1:
            raise FD3DError("dump.cluster has workers and an address; with an address its scheduler's workers are used")

    def with_given(self, workers: int | None, address: str | None) -> "ClusterSettings":
        """These settings with what is given, None for what is not."""
        given: dict[str, Any] = {"workers": workers, "address": address}
        return replace(self, **{name: value for name, value in given.items() if value is not None})

    @property
    def in_process(self) -> bool:
        """Whether this process runs the expert, without dask."""
        return self.workers == 1 and self.address is None
