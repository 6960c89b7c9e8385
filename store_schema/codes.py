"""Features as a few bytes: product quantisation (``pq``) and principal components (``pca``).

Both are linear in what the bytes stand for: ``feature = mean + parts @ basis``. The parts of ``pca`` are the codes themselves,
numbers of 8 or 4 bits; of ``pq`` they are entries of codebooks, one for each byte (Jegou, Douze and Schmid, "Product
quantization for nearest neighbor search", PAMI 2011), in a basis that spreads the variance over the bytes (Ge, He, Ke and
Sun, "Optimized product quantization", PAMI 2014). Mean, basis and codebooks are constants of the store.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .checksum import crc32c_text
from .errors import StoreError

CODED = ("pq", "pca")
"""Values of ``StoreSchema.values`` that are codes."""


@dataclass(frozen=True)
class Code:
    """How a map's features are coded.

    Attributes:
        kind: ``pq`` or ``pca``.
        bytes: of a cell.
        bits: of a component of ``pca``, 8 or 4; two components of 4 bits share a byte, the first in the lower half.
    """

    kind: str
    bytes: int
    bits: int = 8

    def parts(self, channels: int) -> int:
        """Rows of the basis: channels, or principal components."""
        return channels if self.kind == "pq" else self.bytes * 8 // self.bits

    def check(self, name: str, channels: int, section: str = "schema") -> None:
        """Refuse a code that does not fit a map.

        Args:
            name, channels: of the map.
            section: of the settings, in messages.

        Raises:
            StoreError: naming the map.
        """
        if self.bytes < 1:
            raise StoreError(f"{section}.code_bytes is {self.bytes}; it must be at least 1")
        if self.bits not in (4, 8):
            raise StoreError(f"{section}.code_bits is {self.bits}; use 8 or 4")
        if self.kind == "pq" and channels % self.bytes:
            raise StoreError(
                f"{section}.code_bytes is {self.bytes}, which does not divide the {channels} channels of {name}; each byte of pq "
                "stands for as many channels"
            )
        if self.parts(channels) > channels:
            raise StoreError(
                f"{section}.code_bytes is {self.bytes}: {self.parts(channels)} components of pca, more than the {channels} channels "
                f"of {name}"
            )

    def recipe(self, name: str) -> str:
        """How any reader gets the features from the codes (k, bytes) of map ``name``."""
        flat = flat_name(name)
        parts = {
            "pq": f"concatenate([code/{flat}_book[j][values[:, j]] for all j])",
            "pca": "values" if self.bits == 8 else "stack([values & 15, values >> 4], -1).reshape(k, -1)",
        }[self.kind]
        return f"code/{flat}_mean + {parts} @ code/{flat}_basis"


@dataclass(frozen=True)
class MapCode:
    """Code of one map with its constants.

    Attributes:
        code: kind and size.
        basis: (parts, C) float32; of ``pq`` orthonormal rows, of ``pca`` rows of the length of a step.
        mean: (C,) float32.
        book: (bytes, 256, C / bytes) float32 of ``pq``, else None.
    """

    code: Code
    basis: NDArray[Any]
    mean: NDArray[Any]
    book: NDArray[Any] | None = None

    def decode(self, codes: NDArray[Any]) -> NDArray[Any]:
        """Features (k, C) float32 from codes (k, bytes) uint8."""
        parts = self.book[np.arange(self.code.bytes), codes] if self.book is not None else self._numbers(codes)
        features: NDArray[Any] = parts.reshape(len(codes), len(self.basis)) @ self.basis
        features += self.mean
        return features

    def _numbers(self, codes: NDArray[Any]) -> NDArray[Any]:
        if self.code.bits == 4:
            codes = np.stack([codes & 15, codes >> 4], -1)
        return codes.astype(np.float32)

    def constants(self, name: str) -> dict[str, NDArray[Any]]:
        """The arrays by path."""
        flat = flat_name(name)
        held = {f"code/{flat}_basis": self.basis, f"code/{flat}_mean": self.mean}
        return held if self.book is None else held | {f"code/{flat}_book": self.book}


def map_codes(code: Code | None, maps: Mapping[str, int], constants: Mapping[str, NDArray[Any]]) -> dict[str, MapCode]:
    """Codes by map from a store's constants; empty for features that are not coded.

    Args:
        code: of all maps.
        maps: channels by map.
        constants: arrays by path, those of :meth:`MapCode.constants` among others.
    """
    if code is None:
        return {}
    found = {}
    for name in maps:
        flat = flat_name(name)
        book = constants.get(f"code/{flat}_book")
        found[name] = MapCode(code, constants[f"code/{flat}_basis"], constants[f"code/{flat}_mean"], book)
    return found


def flat_name(name: str) -> str:
    """Name of a map in the names of its constants: ``pv/0`` is ``pv_0``."""
    return name.replace("/", "_")


def code_tag(codes: Mapping[str, MapCode]) -> str:
    """Checksum of all constants of codes: shards that were coded with other constants have another one."""
    arrays = {path: array for name, code in codes.items() for path, array in code.constants(name).items()}
    return crc32c_text([np.ascontiguousarray(arrays[path], np.float32).tobytes() for path in sorted(arrays)])
