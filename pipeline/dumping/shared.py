"""What all processes of a dump must have in common, compared on every worker before a frame is inferred there."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import FD3DError
from pipeline.files import file_sha256
from pipeline.models.own_modules import python_files
from store_schema import ShardWriter, StoreError
from store_schema.manifest import RECIPE, fingerprint, unseal

_CODE = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Shared:
    """Files and code as the main process sees them.

    Attributes:
        files: path and SHA-256 of the checkpoint and the index.
        source: SHA-256 of the project's code.
    """

    files: tuple[tuple[Path, str], ...]
    source: str

    def check(self) -> None:
        """Compare with what this process sees.

        Raises:
            FD3DError: a file is missing or another one here, or the code is another version.
        """
        if self.source != source_sha256():
            raise FD3DError("the code of fd3d is another version here than in the dump; install one version everywhere")
        for path, wanted in self.files:
            if not path.is_file():
                raise FD3DError(f"{path} is not there; mount the dump's folders on every worker")
            if (here := file_sha256(path)) != wanted:
                raise FD3DError(
                    f"{path} is another file here: its SHA-256 is {here[:12]}, the dump's {wanted[:12]}; mount the dump's folders "
                    "on every worker"
                )


def _source() -> str:
    total = hashlib.sha256()
    for package in ("pipeline", "store_schema"):
        for file in python_files(_CODE / package):
            total.update(file.relative_to(_CODE).as_posix().encode() + b"\0" + file.read_bytes())
    return total.hexdigest()


LEARNING = ("pipeline/dumping/learning.py", "store_schema/codes.py")
"""Files that decide how codes are learned."""


def _learning() -> str:
    total = hashlib.sha256()
    for name in LEARNING:
        total.update((_CODE / name).read_bytes() + b"\0")
    return total.hexdigest()


_SOURCE, _LEARNING = (
    _source(),
    _learning(),
)  # now, since the files may be edited while this process works with what it has imported


def source_sha256() -> str:
    """SHA-256 of the files of the packages ``pipeline`` and ``store_schema``, as they were when this process began."""
    return _SOURCE


def learning_sha256() -> str:
    """SHA-256 of the files that decide how codes are learned, likewise."""
    return _LEARNING


def check_store(writer: ShardWriter) -> None:
    """Refuse to infer a shard for a store that this process does not see.

    Raises:
        FD3DError: there is no such store here, or another one.
    """
    try:
        recipe = unseal(writer.storage.read(RECIPE))
    except FileNotFoundError:
        recipe = None
    except StoreError as error:
        raise FD3DError(str(error)) from error
    if recipe is None or fingerprint(recipe) != writer.fingerprint:
        what = "is not there" if recipe is None else "is another store here"
        raise FD3DError(
            f"store {writer.storage} {what}; mount the folder of the dump's store on every worker, or use a URL"
        )
