"""CRC-32C of bytes: hexadecimal in manifests and done-markers, four little-endian bytes in shard files."""

from collections.abc import Iterable
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray


def crc32c(parts: Iterable[bytes | memoryview | NDArray[Any]]) -> int:
    """CRC-32C of parts one after the other, as if they were joined."""
    value = 0
    for part in parts:
        if not isinstance(part, bytes):
            part = np.frombuffer(part, np.uint8)
            part.flags.writeable = False  # google_crc32c takes nothing else
        value = google_crc32c.extend(value, part)
    return value


def crc32c_text(parts: Iterable[bytes | memoryview]) -> str:
    """CRC-32C as manifests state it: eight hexadecimal digits."""
    return f"{crc32c(parts):08x}"


def crc32c_bytes(data: bytes) -> bytes:
    """CRC-32C as Zarr's codec appends it to a chunk: four bytes, little-endian."""
    return crc32c([data]).to_bytes(4, "little")


def check_crc32c(parts: Iterable[bytes | NDArray[Any]], stored: bytes, what: str) -> None:
    """Compare the CRC-32C of parts one after the other with the four bytes that a shard file states.

    Args:
        what: name of the checked bytes, for the error.

    Raises:
        ValueError: the checksums differ.
    """
    computed = crc32c(parts).to_bytes(4, "little")
    if computed != stored:
        raise ValueError(
            f"Stored and computed checksum of {what} do not match. Stored: {stored!r}. Computed: {computed!r}."
        )
