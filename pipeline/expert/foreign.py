"""Adapters of mmdet3d's own detectors: boxes of their predictions are the queries."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmdet3d.registry import TASK_UTILS
from mmdet3d.structures import CameraInstance3DBoxes, Det3DDataSample, LiDARInstance3DBoxes
from torch import Tensor, nn

from pipeline.errors import FD3DError

from .adapters import Seen, first_tensor, levels_of, padded_hw
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
    """

    def __init__(
        self,
        bev: str | None = None,
        pv: str | None = None,
        classes: Sequence[str | None] | None = None,
        boxes: str | None = None,
    ) -> None:
        if bev is None and pv is None:
            raise FD3DError("the adapter taps neither 'bev' nor 'pv'; give the module path of at least one")
        if boxes not in (None, "new"):
            raise FD3DError(
                f"adapter.boxes is '{boxes}'; leave it out, or say 'new' of a checkpoint that fits today's mmdet3d"
            )
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

    def read(self, model: nn.Module, seen: Seen, samples: list[Det3DDataSample], num_queries: int) -> list[ExpertFrame]:
        """Boxes of :meth:`detections`; frames with fewer than K are filled with boxes of score 0."""
        frames, found = [], self.detections(samples)
        for b, one in enumerate(found):
            best, missing = one.best(num_queries), max(num_queries - len(one.scores), 0)
            frames.append(
                ExpertFrame(
                    boxes=nn.functional.pad(best.boxes, (0, 0, 0, missing)),
                    score=nn.functional.pad(best.scores, (0, missing)),
                    label=nn.functional.pad(best.labels, (0, missing)),
                    bev=first_tensor(seen["bev"][1])[b].float() if "bev" in seen else None,
                    pv=levels_of(seen["pv"][1], b, len(found)) if "pv" in seen else [],
                    image_hw=padded_hw(samples[b * len(samples) // len(found)]),
                )
            )
        return frames


@TASK_UTILS.register_module()
class MultiViewAdapter(DetectorAdapter):
    """Adapter of a detector that takes the cameras of a frame together, as mmdet3d's ``MultiViewDfM`` or ``ImVoxelNet`` do.

    Args:
        views: number of cameras that the detector takes, in the order of ``pipeline.data.CAMERAS``; one camera goes in as a plain
            image, None takes all.
    """

    def __init__(self, *, views: int | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self.views = views

    def prepare(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Images (V, 3, H, W) or (3, H, W), and samples with mmdet3d's metainfo of cameras."""
        images, samples = [], []
        for img, sample in zip(batch["inputs"]["img"], batch["data_samples"], strict=True):
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

    def __init__(self, *, radius: float = 1.0, **settings: Any) -> None:
        super().__init__(**settings)
        self.radius = radius

    def prepare(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One image (3, H, W) and one sample for each camera of each frame."""
        images, samples = [], []
        for img, sample in zip(batch["inputs"]["img"], batch["data_samples"], strict=True):
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
