"""What a user can set about a dump."""

from dataclasses import dataclass

from pipeline.errors import FD3DError
from pipeline.focal.rule import FocalRule
from store_schema.schema import VALUES


@dataclass(frozen=True)
class DumpSettings:
    """How the store is written; which areas are stored is the focal rule's."""

    rule: FocalRule
    """Queries kept and areas stored around them."""
    layout: str = "focal"
    """``focal`` stores only the areas, ``dense`` the whole maps."""
    values: str = "float16"
    """Features as ``float16``, as ``float32``: twice the bytes, nothing rounded; or, in layout ``focal``, as ``uint8`` with
    a scale and an offset per cell: half the bytes."""
    layers: int | None = None
    """Last decoder layers whose reading is stored, and whose positions' cells; all by default."""
    frames_per_shard: int = 40
    """Rows of one shard; a shard holds whole scenes, so this is at least the longest scene."""
    autocast: str | None = None
    """``bf16`` or ``fp16`` on a GPU."""
    seed: int = 0
    """Seed of random weights when no checkpoint is given."""

    def __post_init__(self) -> None:
        if self.layout not in ("focal", "dense"):
            raise FD3DError(f"dump.layout is '{self.layout}'; use focal or dense")
        if self.values not in VALUES:
            raise FD3DError(f"dump.values is '{self.values}'; use {', '.join(VALUES)}")
        if self.values == "uint8" and self.layout == "dense":
            raise FD3DError(
                "dump.values is uint8 but dump.layout is dense; dense maps are float16 or float32, or use layout focal"
            )
        if self.layers is not None and self.layers < 1:
            raise FD3DError(f"dump.layers is {self.layers}; it must be at least 1, or null for all layers")


@dataclass(frozen=True)
class ClusterSettings:
    """Who runs the expert; nothing here changes what is stored."""

    workers: int = 1
    """Processes that each hold the expert and write shards; 1 runs it in the calling process, without dask."""
    threads_per_worker: int = 1
    """Torch threads of each of them."""
    address: str | None = None
    """A running dask scheduler whose workers are used instead, for example tcp://host:8786."""

    def __post_init__(self) -> None:
        for name in ("workers", "threads_per_worker"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise FD3DError(f"dump.cluster.{name} is {getattr(self, name)}; it is a number of at least 1")
        if self.address is not None and self.workers != 1:
            raise FD3DError("dump.cluster has workers and an address; with an address its scheduler's workers are used")

    @property
    def in_process(self) -> bool:
        """No dask."""
        return self.workers == 1 and self.address is None
