"""Frames of an index as an mmdet3d data set: queues for training, scene order for prediction."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmcv.transforms import Compose
from mmdet3d.registry import DATASETS
from torch.utils.data import Dataset, get_worker_info

from pipeline.data import CLASSES
from pipeline.data.augment import MAX_DRAWS, class_balanced, thinned_queue
from pipeline.data.geometry import can_bus_delta
from pipeline.data.index import Frame, FrameIndex
from pipeline.data.transforms import annotated
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
        thin_queue: queues of :func:`~pipeline.data.augment.thinned_queue`; a frame that follows one of its scene in the queue has
            ``has_history``.
        boxes_within: range (x0, y0, z0, x1, y1, z1) in metres; an item is replaced by a random other one until each of its frames
            has a box there. None keeps all items.
        class_balanced: items of :func:`~pipeline.data.augment.class_balanced`.

    What is random is drawn from numpy's global generator, which the training seeds in every worker.

    Attributes:
        rows: the index's rows of the split's frames, scene by scene.
        places: numbers in ``rows`` of the items.
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
        thin_queue: bool = False,
        boxes_within: Sequence[float] | None = None,
        class_balanced: bool = False,
    ) -> None:
        if queue_length < 1:
            raise FD3DError(f"queue_length is {queue_length}; it must be at least 1")
        self.index = FrameIndex.load(index, root)
        self.root, self.test_mode = Path(root), test_mode
        self.queue_length = 1 if test_mode else queue_length
        self.split, self.rows = split, self.index.select(split)
        self.thin_queue, self.boxes_within = thin_queue, boxes_within
        self.places: Sequence[int] | np.ndarray = self._balanced() if class_balanced else range(len(self.rows))
        self.pipeline = Compose(list(pipeline))

    def full_init(self) -> None:
        """Nothing to do, since the index is already read; called by mmengine's runner."""

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """A transformed item.

        Raises:
            FD3DError: no other sample was found in place of one without boxes.
        """
        if get_worker_info() is not None:  # workers share the cores by processes, not by threads
            cv2.setNumThreads(1)
        raw = self.raw_item(int(self.places[number]))
        for _ in range(MAX_DRAWS):
            if self.boxes_within is None or all(
                annotated(entry["frame"], self.boxes_within).any() for entry in raw["frames"]
            ):
                return self.pipeline(raw)
            raw = self.raw_item(np.random.randint(len(self.rows)))
        raise FD3DError(
            f"{MAX_DRAWS} samples drawn from split '{self.split}' all have a frame without boxes inside {list(self.boxes_within or ())}; "
            "check pc_range, or leave augment.replace_empty off"
        )

    def raw_item(self, place: int) -> dict[str, Any]:
        """The item of ``rows[place]`` before transforms: ``token``, ``root`` and ``frames``, a list of dicts with ``frame``
        (:class:`Frame`), ``can_bus`` (18,) with deltas and ``has_history``."""
        if self.thin_queue:
            queue = [self.index[self.rows[n]] for n in thinned_queue(place, self.queue_length)]
        else:
            queue = self._queue(self.rows[place])
        frames, previous = [], self._before(queue[0]) if self.test_mode else None
        for frame in queue:
            before = previous if previous is not None and self._follows(frame, previous) else None
            frames.append(
                {
                    "frame": frame,
                    "can_bus": can_bus_delta(frame.can_bus, None if before is None else before.can_bus),
                    "has_history": before is not None,
                }
            )
            previous = frame
        return {"token": queue[-1].token, "root": self.root, "frames": frames}

    def _follows(self, frame: Frame, previous: Frame) -> bool:
        """Whether the BEV map of a queue's previous frame is history of this one."""
        if self.thin_queue:
            return frame.scene_token == previous.scene_token
        return frame.token != previous.token

    def _queue(self, row: int) -> list[Frame]:
        rows = [row]
        while len(rows) < self.queue_length:
            earlier = int(self.index.arrays["prev"][rows[0]])
            rows.insert(0, earlier if earlier >= 0 else rows[0])
        return [self.index[r] for r in rows]

    def _balanced(self) -> np.ndarray:
        """Places of the items of an epoch with balanced classes."""
        frames = (self.index[row] for row in self.rows)
        return class_balanced([np.unique(frame.labels[annotated(frame)]).tolist() for frame in frames])

    def _before(self, frame: Frame) -> Frame | None:
        return self.index[frame.prev] if frame.prev >= 0 else None

    def position(self, token: str) -> int:
        """Number of a frame in ``rows``.

        Raises:
            FD3DError: the frame is not in the split.
        """
        row = self.index.row(token)
        try:
            return self.rows.index(row)
        except ValueError:
            raise FD3DError(f"frame {token} is not in the chosen split") from None
