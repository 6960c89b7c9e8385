"""Checksums of a checkpoint's records, which PyTorch writes and does not compare when it reads."""

import zipfile
import zlib
from functools import cache
from pathlib import Path

from pipeline.errors import FD3DError

_PIECE = 1 << 20  # bytes read at once: a record may have gigabytes


def check_records(path: Path) -> None:
    """Refuse a file some of whose bytes are others than were written; once in a process while the file stays as it is.

    A file in PyTorch's old format has no checksums, and one written under ``torch.serialization.set_crc32_options(False)`` has 0 in
    the place of all of them: neither is compared. What else is wrong with a file is for its readers to name.

    Raises:
        FD3DError: naming the file and the record.
    """
    about = path.stat()
    _compare(path, about.st_ino, about.st_size, about.st_mtime_ns)


@cache
def _compare(path: Path, *state: int) -> None:
    """:func:`check_records` of a file in a state, which tells it from a later one at the same path."""
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return
    with archive:
        records = [record for record in archive.infolist() if record.file_size]
        if not any(record.CRC for record in records):
            return
        for record in records:
            try:
                with archive.open(record) as file:
                    while file.read(_PIECE):  # which compares at the end of the record
                        pass
            except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                raise FD3DError(
                    f"checkpoint {path} is damaged: the bytes of its record {record.filename} are not those that were written, by their CRC-32; copy "
                    "the file again, or take an earlier one"
                ) from error
            except (OSError, RuntimeError, NotImplementedError):  # encrypted, or packed by a program that Python lacks
                return
