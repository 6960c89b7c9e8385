"""Frames kept in memory."""

import os
from collections import OrderedDict
from threading import Lock
from typing import Any

from numpy.typing import NDArray

Frame = dict[str, NDArray[Any]]


class FrameCache:
    """The frames that were read last, within a budget of bytes; a cache belongs to the process that made it.

    Args:
        budget: bytes of all arrays together; a larger frame is not kept.
    """

    def __init__(self, budget: int) -> None:
        self.budget, self.used, self.pid = budget, 0, os.getpid()
        self._frames: OrderedDict[str, Frame] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._frames)

    def get(self, token: str) -> Frame | None:
        """A copy of a frame, which the caller may change; None if the frame is not kept."""
        with self._lock:
            frame = self._frames.get(token)
            if frame is None:
                return None
            self._frames.move_to_end(token)
        return _copy(frame)

    def put(self, token: str, frame: Frame) -> None:
        """Keep a copy of a frame, and forget the frames that were not read for longest."""
        size = _size(frame)
        if size > self.budget:
            return
        kept = _copy(frame)
        with self._lock:
            if token in self._frames:
                return
            while self.used + size > self.budget:
                self.used -= _size(self._frames.popitem(last=False)[1])
            self._frames[token] = kept
            self.used += size


def _copy(frame: Frame) -> Frame:
    return {path: array.copy() for path, array in frame.items()}


def _size(frame: Frame) -> int:
    return sum(array.nbytes for array in frame.values())
