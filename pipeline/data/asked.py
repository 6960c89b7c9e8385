"""An index against the settings of a profile that it was made by, and frames of an index that a command is given."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from pipeline.data.index import FrameIndex
from pipeline.data.source import FrameSource
from pipeline.errors import FD3DError


class AskedData(Protocol):
    """What of a profile's section ``data`` decides an index."""

    @property
    def version(self) -> str: ...
    @property
    def classes(self) -> Mapping[str, str | None]: ...
    @property
    def cameras(self) -> Sequence[str]: ...
    @property
    def reference(self) -> str | None: ...


def check_split(source: FrameSource) -> None:
    """Refuse an index that is damaged, that does not fit the data root, or that lacks the split.

    Raises:
        FD3DError: naming which.
    """
    FrameIndex.load(source.index, source.root).select(source.split)


def check_index(path: Path, asked: "AskedData") -> None:
    """Refuse an index that was made with other settings; one that is not there, or is none, is for its readers to name.

    Args:
        asked: settings of a profile's section ``data``; no cameras and no reference leave both to the data set.

    Raises:
        FD3DError: naming the setting and both values.
    """
    if not path.is_file():
        return
    try:
        made = FrameIndex.load(path).settings
    except FD3DError:
        return
    wanted: dict[str, Any] = {"version": asked.version, "classes": asked.classes}
    wanted |= {"cameras": list(asked.cameras)} if asked.cameras else {}
    wanted |= {"reference": asked.reference} if asked.reference else {}
    for name, value in wanted.items():
        if made[name] != value:
            raise FD3DError(
                f"index {path} was made with data.{name} {made[name]}, the profile has {value}; run 'fd3d index' again"
            )


class ProfileData(Protocol):
    """What of a profile's section ``data`` tells frames."""

    def source(self, split: str) -> FrameSource: ...


def asked_source(data: ProfileData, split: str, index: Path | None, root: Path | None) -> FrameSource:
    """Frames of a split of the profile's index, or of one that is given.

    Args:
        data: section ``data`` of the profile.
        split: setting of the profile that names the split, ``train``, ``dev`` or ``val``, or the split's own name. An index
            without the setting's split may have one of the setting's name, which is then meant.
        index, root: given in place of the profile's.

    Raises:
        FD3DError: the profile has no such setting, or its index was made with others.
    """
    source = data.source(split)
    own = FrameIndex.load(index).splits if index is not None and index.is_file() else {}
    if split in own and source.split not in own:
        source = replace(source, split=split)
    return replace(source, index=index or source.index, root=root or source.root)
