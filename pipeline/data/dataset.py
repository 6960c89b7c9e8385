"""Frames of an index as an mmdet3d data set: queues for training, scene order for prediction."""

import bisect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmcv.transforms import Compose
from mmdet3d.registry import DATASETS
from torch.utils.data import Dataset

from pipeline.data import CLASSES
from pipeline.data.geometry import can_bus_delta
from pipeline.data.index import Frame, FrameIndex
from pipeline.errors import FD3DError


@DATASETS.register_module()
class FrameDataset(Dataset):
    """Frames of a split, each with the frames before it.

    Args:
        index: file made by ``fd3d index``.
        root: data root that the index describes.
        split: split name, or ``all``.
        pipeline: transform configs; the last packs the item.
        queue_length: frames per item, the sampled one last. Where a scene has fewer, its first frame is repeated; only
            frames that follow another frame of the queue have ``has_history``.
        test_mode: one frame per item with the ego motion since the scene's previous frame, for streamed prediction.
    """

    metainfo = {"classes": CLASSES}

    def __init__(
        self,
        index: str | Path,
        root: str | Path,
        split: str,
        pipeline: Sequence[dict | Callable],
        queue_length: int = 1,
        test_mode: bool = False,
    ) -> None:
        if queue_length < 1:
            raise FD3DError(f"queue_length is {queue_length}; it must be at least 1")
        self.index = FrameIndex.load(index, root)
        self.root, self.test_mode = Path(root), test_mode
        self.queue_length = 1 if test_mode else queue_length
        self.rows = self.index.select(split)
        self.pipeline = Compose(list(pipeline))

    def full_init(self) -> None:
        """Nothing to do, since the index is already read; called by mmengine's runner."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self.pipeline(self.raw_item(number))

    def raw_item(self, number: int) -> dict[str, Any]:
        """The item before transforms: ``token``, ``root`` and ``frames``, a list of dicts with ``frame`` (:class:`Frame`),
        ``can_bus`` (18,) with deltas and ``has_history``."""
        row = self.rows[number]
        queue = self._queue(row)
        frames, previous = [], self._before(queue[0]) if self.test_mode else None
        for frame in queue:
            repeated = previous is not None and previous.token == frame.token
            before = None if repeated else previous
            frames.append(
                {
                    "frame": frame,
                    "can_bus": can_bus_delta(frame.can_bus, None if before is None else before.can_bus),
                    "has_history": before is not None,
                }
            )
            previous = frame
        return {"token": queue[-1].token, "root": self.root, "frames": frames}

    def _queue(self, row: int) -> list[Frame]:
        rows = [row]
        while len(rows) < self.queue_length:
            earlier = int(self.index.arrays["prev"][rows[0]])
            rows.insert(0, earlier if earlier >= 0 else rows[0])
        return [self.index[r] for r in rows]

    def _before(self, frame: Frame) -> Frame | None:
        return self.index[frame.prev] if frame.prev >= 0 else None

    def position(self, token: str) -> int:
        """Number of a frame in this data set.

        Raises:
            FD3DError: the frame is not in the split.
        """
        row = self.index.row(token)
        ordered = sorted(range(len(self.rows)), key=self.rows.__getitem__)
        at = bisect.bisect_left(ordered, row, key=self.rows.__getitem__)
        if at == len(ordered) or self.rows[ordered[at]] != row:
            raise FD3DError(f"frame {token} is not in the chosen split")
        return ordered[at]
