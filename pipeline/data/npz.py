"""Arrays in an ``.npz`` file that processes map into memory instead of reading, so that all share one copy."""

import mmap
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np

_ALIGNMENT = 64
_HEADER, _SIGNATURE = 30, b"PK\x03\x04"  # of a member of a zip file, before its name and its extra field
_EXTRA_ID = 0xD935  # extra field that is there for its length only, as Android's zipalign writes it


def write_arrays(file: IO[bytes], arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays uncompressed and aligned, the same bytes for the same arrays on every machine; ``np.load`` reads them."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy")  # of 1980, the format's first year
            info.create_system = 3
            start = file.tell() + _HEADER + len(info.filename) + 4
            padding = -start % _ALIGNMENT
            info.extra = struct.pack("<HH", _EXTRA_ID, padding) + bytes(padding)
            with archive.open(info, "w") as member:
                np.lib.format.write_array(member, np.ascontiguousarray(array).reshape(array.shape), allow_pickle=False)


def map_arrays(path: Path, check: bool) -> tuple[dict[str, np.ndarray], mmap.mmap]:
    """Map the arrays of a file, read-only.

    Args:
        check: compare the checksums of all members, which reads the file once.

    Returns:
        the arrays by name, and the mapping of the whole file.

    Raises:
        ValueError, OSError, zipfile.BadZipFile: the file is damaged, or its arrays cannot be mapped.
    """
    with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
        if check and (bad := archive.testzip()):
            raise ValueError(f"checksum of {bad} differs")
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return {info.filename.removesuffix(".npy"): _array(mapping, info) for info in archive.infolist()}, mapping


def _array(mapping: mmap.mmap, info: zipfile.ZipInfo) -> np.ndarray:
    at = info.header_offset
    if info.compress_type != zipfile.ZIP_STORED or mapping[at : at + 4] != _SIGNATURE:
        raise ValueError(f"{info.filename} is compressed or misplaced")
    mapping.seek(at + _HEADER + sum(struct.unpack("<HH", mapping[at + 26 : at + 30])))
    version = np.lib.format.read_magic(mapping)  # type: ignore[arg-type]
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, columns_first, dtype = read(mapping)  # type: ignore[arg-type]
    if dtype.hasobject:
        raise ValueError(f"{info.filename} has objects")
    return np.ndarray(shape, dtype, mapping, mapping.tell(), order="F" if columns_first else "C")
