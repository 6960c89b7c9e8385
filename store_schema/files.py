"""Files that are either whole or not there."""

import errno
import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType

import google_crc32c

from .errors import StoreError


class disk_errors:  # noqa: N801 - reads as a statement
    """Turn a full or unwritable disk into one line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, OSError) and error.errno in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EFBIG,
            errno.EROFS,
            errno.EACCES,
        ):
            free = shutil.disk_usage(self.path).free / 1e6
            raise StoreError(
                f"store {self.path} cannot be written: {error.strerror} ({free:.0f} MB free); what is done stays, make room and run the dump again"
            ) from error


def file_crc32c(path: Path) -> str:
    """CRC-32C of a file, hexadecimal."""
    checksum = google_crc32c.Checksum()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            checksum.update(block)
    return checksum.hexdigest().decode()


def sync_and_sum(path: Path) -> str:
    """Flush a file to the disk; its CRC-32C."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return file_crc32c(path)


def sync_folder(path: Path) -> None:
    """Flush a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_text(path: Path, text: str) -> None:
    """Write a text file whole, by way of a temporary one."""
    with disk_errors(path.parent):
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".tmp-{path.name}-")
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
            sync_folder(path.parent)
        finally:
            Path(temporary).unlink(missing_ok=True)
