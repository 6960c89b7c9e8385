"""An index against the settings of a profile that it was made by, and against the split that is asked for."""

from collections.abc import Mapping, Sequence
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
