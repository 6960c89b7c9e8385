"""Writing files so that a reader never sees half of one."""

import errno
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.errors import FD3DError


def write_atomically(path: Path, write: Callable[[Any], object], binary: bool = False) -> None:
    """Call ``write(file)`` on a temporary file beside ``path`` and rename it into place.

    Raises:
        FD3DError: the disk is full or the folder cannot be written; what stood at ``path`` stays.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "wb" if binary else "w", newline=None if binary else "") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Refuse a file that could not be written after long work; leaves nothing, no folder either.

    Raises:
        FD3DError: the folder cannot be made or written, is a store's, or a folder stands in the file's place.
    """
    check_outside_stores(path)
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        folder, names = path.parent, [path.name]
        while not os.path.lexists(folder) and folder != folder.parent:
            names.append(folder.name)
            folder = folder.parent
        for name in names:  # those that are too long
            with suppress(FileNotFoundError):
                os.lstat(folder / name)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unwritable(path, error) from error


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


STORE_FILES = (("manifest.json", "recipe.json"), ("zarr.json", ".done", ".lock"))
"""Names by which a folder is known as a store, also an unfinished one: one of each has to be there."""


def check_outside_stores(path: Path) -> None:
    """Refuse a place to write to that is a store or lies in one, of which a dump and ``fd3d verify`` know every file.

    Raises:
        FD3DError: naming the store.
    """
    real = Path(os.path.realpath(path))  # through links
    for folder in (real, *real.parents):
        if all(any(os.path.exists(folder / name) for name in names) for names in STORE_FILES):
            raise FD3DError(f"{path} cannot be written: {folder} is a store; give a place outside of it")


_POINTER, _ARCHIVE, _PICKLE = b"version https://git-lfs", b"PK", b"\x80"
_NEEDED = {
    "config": "config {} does not exist; see configs/ for those that ship",
    "beside": "config {} does not exist; the stages expert and train write it: run 'fd3d expert', 'fd3d train' or 'dvc repro', or name "
    "another by --config, such as one of configs/",
    "made": "config {} does not exist; the stages expert and train write it: run 'fd3d expert', 'fd3d train' or 'dvc repro', or name another config",
    "checkpoint": "checkpoint {} does not exist; run 'dvc repro', or give another",
    "expert": "the expert's checkpoint {} does not exist; run the expert stage, or inherit nothing",
    "exported": "{} does not exist; make it with 'fd3d export'",
    "index": "index {} does not exist; make it with 'fd3d index'",
    "submission": "submission {} does not exist; write one with 'fd3d evaluate --checkpoint', or give another",
    "output": "{} does not exist; run 'dvc repro'",
    "root": "data root {} does not exist; give the folder of a data set",
}


def check_needed(**paths: Path | None) -> None:
    """Refuse what a command needs and what is not there, before libraries are imported that take seconds.

    Args:
        paths: files (``root``: a folder) by what they are: config, beside (a config that a stage wrote beside a checkpoint, where the option ``--config`` names
            another), checkpoint, expert (a checkpoint to inherit from), exported, index, submission, output (of a stage); None needs none.

    Raises:
        FD3DError: naming the first that is missing, and where it comes from; or that is another file than a checkpoint.
    """
    for kind, path in paths.items():
        if path is None or (path.is_dir() if kind == "root" else path.is_file()):
            if path is not None and kind in ("checkpoint", "expert"):
                _check_kind(path)
            continue
        if kind != "root":
            refuse_irregular(path)
        if kind == "config" and path.name == "config.py":  # as the stages call what they write
            kind = "made"
        raise FD3DError(_NEEDED[kind].format(path))


def refuse_irregular(path: Path) -> None:
    """Refuse what is there and no file, before it is called missing; reading a pipe would wait for another process.

    Raises:
        FD3DError: naming the path.
    """
    if path.exists() and not path.is_file():
        raise FD3DError(f"{path} is no regular file but a folder, pipe, socket or device; give a file")


def _check_kind(path: Path) -> None:
    """Refuse a file that is no checkpoint of PyTorch by its name or its first bytes.

    Raises:
        FD3DError: naming the way out.
    """
    with open(path, "rb") as file:
        start = file.read(len(_POINTER))
    # safetensors: the length of a JSON text, eight bytes, then the text
    if path.suffix == ".safetensors" or (start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 1 << 32):
        raise FD3DError(
            f"checkpoint {path} is of safetensors; write it as PyTorch's, in Python: torch.save({{'state_dict': "
            f"safetensors.torch.load_file('{path}')}}, '{path.with_name(path.stem)}_torch.pth')"
        )
    if start == _POINTER:
        raise FD3DError(f"checkpoint {path} is a pointer of Git LFS in place of the file; run 'git lfs pull'")
    if not start.startswith((_ARCHIVE, _PICKLE)):
        raise FD3DError(
            f"checkpoint {path} is not a plain PyTorch checkpoint (its first bytes are of another kind of file); copy it again if it is "
            "cut short, else name the checkpoint"
        )


def _unwritable(path: Path, error: OSError) -> FD3DError:
    return FD3DError(f"{path} cannot be written: {_reason(error)}; free some space or give another place")


def _reason(error: OSError) -> str:
    full = ": no space or no inodes left (df -h, df -i)" if error.errno == errno.ENOSPC else ""
    return f"{error.strerror or error}{full}"


NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of the errors of a full disk, a full quota, and a file above the limit of file sizes."""
_PATHS = {
    errno.ENAMETOOLONG: "give a shorter path",
    errno.EACCES: "check owner and permissions of its folders",
    errno.EPERM: "check owner and permissions of its folders",
    errno.EROFS: "the file system can only be read; give a place on another",
    errno.ESTALE: "the network mount was lost; mount it anew",
}
"""Numbers of the errors of a path that cannot be asked for, which ``Path.exists`` and the like let pass, and the fix."""


@contextmanager
def system_errors() -> Iterator[None]:
    """Say in one line that a write failed for want of space (of the disk, of a quota, or below a limit of file sizes), and which path cannot be used.

    Raises:
        FD3DError: in place of the system's error; other errors pass.
    """
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            where = error.filename or "a file"
            raise FD3DError(f"{where} cannot be written: {_reason(error)}; free some space") from error
        if error.errno not in _PATHS or not isinstance(error.filename, str | Path):
            raise
        raise FD3DError(f"{error.filename} cannot be used: {_reason(error)}; {_PATHS[error.errno]}") from error


def between_markers(text: str, content: str, markers: tuple[str, str], where: object) -> str:
    """Document with the text between two markers replaced by ``content``.

    Raises:
        FD3DError: the document lacks a marker.
    """
    before, begin, rest = text.partition(markers[0])
    _, end, after = rest.partition(markers[1])
    if not begin or not end:
        raise FD3DError(f"{where} lacks the lines '{markers[0]}' and '{markers[1]}'; put them where the tables belong")
    return f"{before}{begin}\n{content}{end}{after}"
