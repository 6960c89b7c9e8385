"""Boxes of mmdet3d detectors in this project's conventions: LiDAR frame, nine values, its own class order."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from mmdet3d.structures import BaseInstance3DBoxes, CameraInstance3DBoxes, DepthInstance3DBoxes
from mmengine.structures import InstanceData
from torch import Tensor, nn

from pipeline.data import CLASSES
from pipeline.errors import FD3DError, counted


@dataclass
class Detections:
    """Boxes that a detector predicted for one frame.

    Attributes:
        boxes: (n, 9) LiDAR frame: x, y, z of the centre of gravity, dx, dy, dz, yaw, vx, vy; metres, radians, m/s. Velocities are
            0 where the detector predicts none.
        scores: (n,) in 0..1.
        labels: (n,) numbers in ``CLASSES``.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def best(self, count: int) -> "Detections":
        """The boxes with the best scores, in their order."""
        scores, order = self.scores.sort(descending=True, stable=True)
        return Detections(self.boxes[order[:count]], scores[:count], self.labels[order[:count]])


def class_numbers(names: Sequence[str | None] | None) -> list[int]:
    """Number in ``CLASSES`` of each of a detector's classes, -1 for those that are left out.

    Args:
        names: class names in the detector's order, None for one that is none of ``CLASSES``; None is the order of ``CLASSES``.

    Raises:
        FD3DError: a name is none of ``CLASSES``, or there is one twice.
    """
    if names is None:
        return list(range(len(CLASSES)))
    for number, name in enumerate(names):
        if name is not None and (name not in CLASSES or name in names[:number]):
            fault = "twice" if name in CLASSES else "unknown"
            raise FD3DError(
                f"adapter.classes has '{name}', {fault}; use each of {', '.join(CLASSES)} once, and None for others"
            )
    return [-1 if name is None else CLASSES.index(name) for name in names]


def detections(found: InstanceData, numbers: Sequence[int], cam2lidar: Tensor | None = None) -> Detections:
    """Detections of one frame or image.

    Args:
        found: ``pred_instances_3d`` with ``bboxes_3d``, ``scores_3d`` and ``labels_3d``.
        numbers: see :func:`class_numbers`.
        cam2lidar: (4, 4) from the camera's frame to the LiDAR's, for boxes in the camera's frame.

    Raises:
        FD3DError: boxes in a frame that is not known, or a label without a class or below 0.
    """
    boxes, labels = lidar_boxes(found.bboxes_3d, cam2lidar), found.labels_3d
    if len(labels) and int(labels.min()) < 0:  # which would count from the last class on
        raise FD3DError(
            f"the detector gave class {int(labels.min())}, and classes count from 0; leave such boxes out in an adapter of your own"
        )
    if len(labels) and int(labels.max()) >= len(numbers):
        raise FD3DError(
            f"the detector gave class {int(labels.max())}, of {counted(len(numbers), 'class')} declared; list all in the config's adapter: classes=[...]"
        )
    own = torch.tensor(numbers, device=labels.device)[labels]
    kept = own >= 0
    return Detections(boxes[kept], found.scores_3d.float()[kept], own[kept])


def check_detections(found: Detections, adapter: str) -> None:
    """Refuse detections of a frame that are not as :class:`Detections` says; numbers that are not finite are left to their readers, which
    name the frame.

    Args:
        adapter: name of the adapter in messages.

    Raises:
        FD3DError: naming the part.
    """
    count = len(found.scores)
    for name, shape in {"boxes": (count, 9), "scores": (count,), "labels": (count,)}.items():
        if (told := tuple(getattr(found, name).shape)) != shape:
            raise FD3DError(
                f"{adapter}.detections gave {name} {told} for {counted(count, 'score')}; give a tensor {shape}"
            )
    odd = found.labels[(found.labels < 0) | (found.labels >= len(CLASSES))]
    if found.labels.is_floating_point() or len(odd):
        label = odd[0].item() if len(odd) else "of type float"
        raise FD3DError(
            f"{adapter}.detections gave the label {label}; give whole numbers of pipeline.data.CLASSES, 0 to {len(CLASSES) - 1}"
        )


def lidar_boxes(boxes: BaseInstance3DBoxes, cam2lidar: Tensor | None = None) -> Tensor:
    """Boxes (n, 9) in the LiDAR frame from mmdet3d's of seven or nine values.

    In mmdet3d's camera frame (x right, y down, z ahead) a box has sizes along its length, height and width, and at yaw r looks
    along (cos r, 0, -sin r); velocities are those along x and z.

    Args:
        cam2lidar: (4, 4), for :class:`CameraInstance3DBoxes`.

    Raises:
        FD3DError: the boxes' frame is a depth camera's, or a camera's that is not given.
    """
    tensor, centre = boxes.tensor.float(), boxes.gravity_center.float()
    tensor = nn.functional.pad(tensor, (0, max(9 - tensor.shape[1], 0)))  # detectors without velocity
    if not isinstance(boxes, CameraInstance3DBoxes):
        if isinstance(boxes, DepthInstance3DBoxes):
            raise FD3DError(
                "the detector's boxes are in a depth camera's frame; turn them to the LiDAR's in an adapter of your own"
            )
        return torch.cat([centre, tensor[:, 3:9]], -1)
    if cam2lidar is None:
        raise FD3DError(
            "the detector's boxes are in a camera's frame; use an adapter that gives it one camera each: MonocularAdapter"
        )
    turn, place = cam2lidar[:3, :3].to(tensor), cam2lidar[:3, 3].to(tensor)
    length, height, width, yaw, vx, vz = tensor[:, 3:9].unbind(-1)
    zero = torch.zeros_like(yaw)
    heading = torch.stack([yaw.cos(), zero, -yaw.sin()], -1) @ turn.T
    motion = torch.stack([vx, zero, vz], -1) @ turn.T
    return torch.cat(
        [
            centre @ turn.T + place,
            torch.stack([length, width, height, torch.atan2(heading[:, 1], heading[:, 0])], -1),
            motion[:, :2],
        ],
        -1,
    )


def joined(parts: Sequence[Detections], radius: float) -> Detections:
    """Detections of all cameras, without those that a better one of their class has within a radius.

    Args:
        radius: metres between centres on the ground, below which two boxes of a class are one object that two cameras see.
    """
    boxes, scores, labels = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("boxes", "scores", "labels")
    )
    everything = Detections(boxes, scores, labels).best(len(scores))
    near = torch.cdist(everything.boxes[:, :2], everything.boxes[:, :2]) < radius
    near &= everything.labels[:, None] == everything.labels
    kept = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
    for row in range(len(scores)):
        if kept[row]:
            kept[row + 1 :] &= ~near[row, row + 1 :]
    return Detections(everything.boxes[kept], everything.scores[kept], everything.labels[kept])
