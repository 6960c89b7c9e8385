"""Folder of a training's files, which a training that is refused leaves as it was."""

import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

from mmengine.dist import is_main_process


class WorkFolder:
    """Context of a training's start: mmengine's Runner writes a log and the config before the start can be refused.

    Args:
        path: the folder; made where it is absent.
        begun: whether the training goes on from a checkpoint, so that what is there may be its own.
    """

    def __init__(self, path: Path, begun: bool = False) -> None:
        self.path, self.begun = path, begun
        self._absent = [folder for folder in (path, *path.parents) if not folder.exists()]
        self._there = set() if self._absent else set(path.iterdir())

    def begin(self) -> None:
        """Note that the start can be refused no more; from here on everything stays."""
        self.begun = True

    def __enter__(self) -> Self:
        self.path.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or self.begun or not is_main_process():
            return
        for new in set(self.path.iterdir()) - self._there:
            if new.is_dir() and not new.is_symlink():
                shutil.rmtree(new, ignore_errors=True)
            else:
                new.unlink(missing_ok=True)
        for folder in self._absent:
            if any(folder.iterdir()):  # another process's
                return
            folder.rmdir()
