"""An index against the settings of a profile that it was made by, and frames of an index that a command is given."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from pipeline.data.index import FrameIndex
from pipeline.data.source import FrameSource, check_boxes
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


class SplitData(AskedData, Protocol):
    """What of a profile's section ``data`` the frames of its own index have to fit."""

    @property
    def train(self) -> str: ...
    @property
    def val(self) -> str: ...
    def check_splits(self, splits: Mapping[str, Collection[str]]) -> None: ...


def check_made(made: FrameIndex, root: Path, asked: SplitData) -> None:
    """Refuse the index of a profile on whose splits nothing can be trained or evaluated.

    Raises:
        FD3DError: a split has no scene or no box that counts, or the devkit cannot read the validation split's annotations.
    """
    from pipeline.data.devkit import open_truth  # seconds

    asked.check_splits(made.splits)
    named = {"data.train": asked.train, "data.val": asked.val}
    check_boxes({key: (split, made.boxes_of(made.select(split))[1]) for key, split in named.items()})
    open_truth(root, made.version, made.splits.get(asked.val, made.scenes), made)


@contextmanager
def naming_a_profile(asked: AskedData | None) -> Iterator[None]:
    """Errors on settings of a profile also say how ``fd3d index`` reads one, where none was read."""
    try:
        yield
    except FD3DError as error:
        if asked is None and re.search(r"\bdata\.(classes|cameras|reference|skip_incomplete)\b", str(error)):
            raise FD3DError(f"{error}; --root and --version read no profile: name one by --params") from error
        raise


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
