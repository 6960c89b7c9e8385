"""Places that the stages write files to, before DVC removes what lies there."""

import os
from collections.abc import Iterator
from pathlib import Path

from pipeline.distill.settings import FD3D
from pipeline.errors import FD3DError
from pipeline.files import check_writable
from pipeline.profile import CONFIG, METRICS, RUNS, Profile


def check_places(profile: Profile) -> None:
    """Refuse a profile one of whose output files is a folder, or would take the place of one.

    Raises:
        FD3DError: naming the place.
    """
    index = profile.data.index
    for folder in (profile.data.root, RUNS, METRICS):
        if _absolute(folder).is_relative_to(_absolute(index)):
            raise FD3DError(
                f"data.index is {index}, where the folder {folder} lies; name a file, such as data/index.npz"
            )
    if index.is_dir():
        raise FD3DError(f"data.index is {index}, which is a folder; name a file, such as data/index.npz")
    if not index.exists():  # one that is there may be shared, in a folder that others write
        try:
            check_writable(index)
        except FD3DError as error:
            raise FD3DError(f"data.index: {error}") from error
    for file in _files(profile):
        if file.is_dir():
            raise FD3DError(f"{file} is a folder where a stage writes a file; move it elsewhere")


def _files(profile: Profile) -> Iterator[Path]:
    for family in profile.families.values():
        for role in ("expert", *profile.methods, FD3D):
            checkpoint, _, metrics = family.evaluated(role)
            yield from (checkpoint, checkpoint.with_name(CONFIG), metrics)


def _absolute(path: Path) -> Path:
    """A path without ``..``; links stay, since DVC removes these."""
    return Path(os.path.normpath(Path.cwd() / path))
