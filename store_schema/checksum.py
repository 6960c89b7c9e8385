"""CRC-32C of bytes: hexadecimal in manifests and done-markers, four little-endian bytes in shard files."""

import zlib
from collections.abc import Iterable, Mapping
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


def checksums(parts: Iterable[bytes | memoryview]) -> dict[str, str]:
    """Checksums of parts one after the other, as manifests and markers list them.

    Chunks and index of a shard file end with their own CRC-32C, and the CRC-32C of a message with its own CRC-32C does not
    depend on the message. That of chunks hence tells their lengths and not their values. CRC-32 has another polynomial, of
    which this is not true.
    """
    castagnoli = other = 0
    for part in parts:
        castagnoli, other = google_crc32c.extend(castagnoli, bytes(part)), zlib.crc32(part, other)
    return {"crc32c": f"{castagnoli:08x}", "crc32": f"{other:08x}"}


def entry(data: bytes) -> dict[str, Any]:
    """Size and checksums of a file's content, as manifests and markers list them."""
    return {"bytes": len(data), **checksums([data])}


def mismatch(found: Mapping[str, str], listed: Mapping[str, Any]) -> tuple[str, str] | None:
    """First of the listed checksums that differs, found and listed; stores of an earlier revision list one only."""
    pairs = ((found[name], listed[name]) for name in found if name in listed)
    return next(((a, b) for a, b in pairs if a != b), None)


def fault(data: bytes | None, listed: Mapping[str, Any]) -> str:
    """What is wrong with a file, given its content (None: no file) and its :func:`entry`; empty for a whole file."""
    if data is None:
        return "is missing"
    if len(data) != listed["bytes"]:
        return f"has {len(data)} bytes instead of {listed['bytes']}"
    return "does not have the checksum that it was written with" if mismatch(checksums([data]), listed) else ""


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
