"""Adapters of mmdet3d's own detectors: boxes of their predictions are the queries."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from mmdet3d.registry import TASK_UTILS
from mmdet3d.structures import CameraInstance3DBoxes, Det3DDataSample, LiDARInstance3DBoxes
from mmengine.structures import InstanceData
from torch import Tensor, nn

from pipeline.errors import FD3DError, counted

from .adapters import Seen, first_tensor, levels_of, own_sizes, padded_hw
from .detections import Detections, class_numbers, detections, joined
from .frame import ExpertFrame


@TASK_UTILS.register_module()
class DetectorAdapter:
    """Adapter of any mmdet3d detector: maps by module path, boxes of the detector's own predictions as queries.

    Args:
        bev: path of a module that returns the BEV map (B, C, H, W), or a sequence that starts with it.
        pv: path of a module that returns pyramid levels (B*V, C, Hl, Wl).
        classes: class names in the detector's order, None for a class that is none of ``pipeline.data.CLASSES``; by default the
            detector has the order of ``CLASSES``. mmdet3d's own configs order nuScenes' classes otherwise.
        boxes: ``new`` where a checkpoint of mmdet3d before 1.0 is known to fit today's boxes; see
            :func:`~pipeline.models.checkpoints.check_conventions`, which reads the setting.
        values: values of a true box in training: 9, or 7 for a detector without velocity.

    Attributes:
        frame: frame of the detector's boxes in mmdet3d's words, ``LIDAR`` or ``CAMERA``.
    """

    frame: ClassVar[str] = "LIDAR"

    def __init__(
        self,
        bev: str | None = None,
        pv: str | None = None,
        classes: Sequence[str | None] | None = None,
        boxes: str | None = None,
        values: int = 9,
    ) -> None:
        if bev is None and pv is None:
            raise FD3DError("the adapter taps neither 'bev' nor 'pv'; give the module path of at least one")
        if boxes not in (None, "new"):
            raise FD3DError(
                f"adapter.boxes is '{boxes}'; leave it out, or say 'new' of a checkpoint that fits today's mmdet3d"
            )
        if values not in (7, 9):
            raise FD3DError(f"adapter.values is {values!r}; use 9, or 7 for a detector without velocity")
        self.values = values
        self.paths = {name: path for name, path in (("bev", bev), ("pv", pv)) if path is not None}
        self.numbers = class_numbers(classes)

    def taps(self, model: nn.Module) -> dict[str, str]:
        """The paths as given."""
        return self.paths

    def prepare(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch unchanged."""
        return batch

    def constants(self, model: nn.Module) -> dict[str, Tensor]:
        """None."""
        return {}

    def detections(self, samples: list[Det3DDataSample]) -> list[Detections]:
        """Boxes of each frame, from what the model's ``predict`` returned."""
        return [detections(sample.pred_instances_3d, self.numbers) for sample in samples]

    def truth(self, gt: InstanceData) -> InstanceData:
        """True boxes (``bboxes_3d`` in the LiDAR frame, ``labels_3d`` in ``CLASSES``) as the detector trains on them: in its classes,
        of :attr:`values` values; boxes of other classes are left out."""
        numbers = [self.numbers.index(label) if label in self.numbers else -1 for label in gt.labels_3d.tolist()]
        labels = torch.tensor(numbers, dtype=torch.long)
        kept = labels >= 0
        boxes = LiDARInstance3DBoxes(gt.bboxes_3d.tensor[kept, : self.values], box_dim=self.values)
        return InstanceData(bboxes_3d=boxes, labels_3d=labels[kept])

    def read(self, model: nn.Module, seen: Seen, samples: list[Det3DDataSample], num_queries: int) -> list[ExpertFrame]:
        """Boxes of :meth:`detections`; frames with fewer than K are filled with boxes of score 0.

        Raises:
            FD3DError: a tapped module gave no map of this shape.
        """
        frames, found = [], self.detections(samples)
        for name in self.paths:
            self._check_tap(name, seen[name][1], len(found))
        for b, one in enumerate(found):
            best, missing = one.best(num_queries), max(num_queries - len(one.scores), 0)
            sample = samples[b * len(samples) // len(found)]  # the frame's, or that of its first camera
            pyramid = levels_of(seen["pv"][1], b, len(found)) if "pv" in seen else []
            frames.append(
                ExpertFrame(
                    boxes=nn.functional.pad(best.boxes, (0, 0, 0, missing)),
                    score=nn.functional.pad(best.scores, (0, missing)),
                    label=nn.functional.pad(best.labels, (0, missing)),
                    bev=first_tensor(seen["bev"][1])[b].float() if "bev" in seen else None,
                    pv=pyramid,
                    image_hw=padded_hw(sample),
                    view_hw=own_sizes(sample, pyramid),
                )
            )
        return frames

    def _check_tap(self, name: str, output: Any, frames: int) -> None:
        several = isinstance(output, Sequence) and len(output) > 0
        maps = [output] if isinstance(output, Tensor) else list(output) if several else []
        maps = maps[:1] if name == "bev" else maps
        told = [tuple(one.shape) if isinstance(one, Tensor) else type(one).__name__ for one in maps or [output]]
        wanted = f"maps ({frames}, C, rows, columns)" if name == "bev" else "levels (cameras, C, rows, columns)"
        fits = [
            isinstance(one, Tensor)
            and one.dim() == 4
            and (len(one) == frames if name == "bev" else len(one) % frames == 0)
            for one in maps
        ]
        if not fits or not all(fits):
            raise FD3DError(
                f"adapter.{name} taps '{self.paths[name]}', which gave {', '.join(map(str, told))}; tap a module that gives {wanted}"
            )


@TASK_UTILS.register_module()
class MultiViewAdapter(DetectorAdapter):
    """Adapter of a detector that takes the cameras of a frame together, as mmdet3d's ``MultiViewDfM`` or ``ImVoxelNet`` do.

    Args:
        views: number of cameras that the detector takes, in the order of ``pipeline.data.CAMERAS``; one camera goes in as a plain
            image, None takes all.
    """

    def __init__(self, *, views: int | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        if views is not None and (type(views) is not int or views < 1):
            raise FD3DError(f"adapter.views is {views!r}; give a number of cameras, or leave it out for all")
        self.views = views

    def prepare(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Images (V, 3, H, W) or (3, H, W), and samples with mmdet3d's metainfo of cameras and in training true boxes.

        Raises:
            FD3DError: the data have fewer cameras than the detector takes.
        """
        images, samples = [], []
        for img, sample in zip(batch["inputs"]["img"], batch["data_samples"], strict=True):
            if self.views is not None and self.views > len(img[-1]):
                raise FD3DError(
                    f"adapter.views is {self.views}, but the data have {counted(len(img[-1]), 'camera')}; lower it"
                )
            views, cameras = img[-1][: self.views], camera_meta(sample, self.views)
            single = self.views == 1
            shape = tuple(views.shape[-2:])
            meta = {name: values[0] if single else list(values) for name, values in cameras.items()}
            made = Det3DDataSample(metainfo=sample.metainfo)
            made.set_metainfo(
                meta
                | {
                    "ori_cam2img": meta["cam2img"],
                    "num_views": len(views),
                    "num_ref_frames": 0,
                    "img_shape": shape if single else [shape] * len(views),
                    "box_type_3d": LiDARInstance3DBoxes,
                }
            )
            if "gt_instances_3d" in sample:
                made.gt_instances_3d = self.truth(sample.gt_instances_3d)
            images.append(views[0] if single else views)
            samples.append(made)
        return {"inputs": {"img": images}, "data_samples": samples}


@TASK_UTILS.register_module()
class MonocularAdapter(DetectorAdapter):
    """Adapter of a detector that takes one image at a time and gives boxes in its camera's frame: FCOS3D, PGD, SMOKE.

    The images of a frame's cameras are a batch, their boxes are turned to the LiDAR's frame and joined.

    Args:
        radius: metres, as of :func:`~pipeline.expert.detections.joined`.
    """

    frame = "CAMERA"

    def __init__(self, *, radius: float = 1.0, **settings: Any) -> None:
        super().__init__(**settings)
        if isinstance(radius, bool) or not isinstance(radius, int | float) or not radius >= 0:
            raise FD3DError(f"adapter.radius is {radius!r}; give metres, 0 or more")
        self.radius = radius

    def prepare(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One image (3, H, W) and one sample for each camera of each frame.

        Raises:
            FD3DError: true boxes, which a detector of images would need in pixels.
        """
        images, samples = [], []
        for img, sample in zip(batch["inputs"]["img"], batch["data_samples"], strict=True):
            if "gt_instances_3d" in sample:
                raise FD3DError(
                    "MonocularAdapter gives no true boxes in pixels, so its detector cannot be trained here; take an expert with a checkpoint, and as "
                    "the student a detector of MultiViewAdapter or of this project"
                )
            cameras = camera_meta(sample)
            for view, image in enumerate(img[-1]):
                made = Det3DDataSample(metainfo=sample.metainfo)
                made.set_metainfo(
                    {name: values[view] for name, values in cameras.items()}
                    | {
                        "views": len(img[-1]),
                        "scale_factor": (1.0, 1.0),  # cam2img is of this image
                        "img_shape": tuple(image.shape[-2:]),
                        "box_type_3d": CameraInstance3DBoxes,
                    }
                )
                images.append(image)
                samples.append(made)
        return {"inputs": {"img": images}, "data_samples": samples}

    def detections(self, samples: list[Det3DDataSample]) -> list[Detections]:
        """Boxes of each frame, of all its cameras."""
        parts = [
            detections(
                sample.pred_instances_3d, self.numbers, torch.as_tensor(np.linalg.inv(sample.metainfo["lidar2cam"]))
            )
            for sample in samples
        ]
        views = samples[0].metainfo["views"]
        return [joined(parts[start : start + views], self.radius) for start in range(0, len(parts), views)]


def camera_meta(sample: Det3DDataSample, views: int | None = None) -> dict[str, np.ndarray]:
    """Matrices (V, 4, 4) of a frame's first ``views`` cameras under mmdet3d's names, for the unpadded images: ``lidar2img``,
    ``lidar2cam`` and ``cam2img``."""
    frame = sample.frames[-1]
    lidar2img, lidar2cam = (np.asarray(frame[name], np.float64)[:views] for name in ("lidar2img", "lidar2cam"))
    cam2img = lidar2img @ np.linalg.inv(lidar2cam)
    return {"lidar2img": lidar2img, "lidar2cam": lidar2cam, "cam2img": cam2img}
