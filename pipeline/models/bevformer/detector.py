"""The BEVFormer detector as an mmdet3d model."""

from typing import Any

import torch
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample
from torch import Tensor

from pipeline.errors import FD3DError

from ..detector import Frames, MultiCameraDetector, gt_tensors, stack_meta
from ..query_head import HeadOutput
from ..views import view_sizes


@MODELS.register_module()
class BEVFormer(MultiCameraDetector):
    """Multi-camera temporal 3D detector (Li et al., ECCV 2022).

    In training a queue of frames is encoded, the history without gradients. In prediction frames must come in the
    order of their scene: the BEV map of a scene's last frame is kept and aligned to the next.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._stream: dict[str, Tensor] = {}

    def encode(self, features: list[Tensor], frames: Frames, history: Tensor | None, has_history: Tensor) -> Tensor:
        """BEV map (B, H*W, C) of one time step; ``frames`` is the step's metainfo per sample."""
        device = features[0].device
        lidar2img, can_bus = (stack_meta(frames, name, device) for name in ("lidar2img", "can_bus"))
        own = view_sizes(frames, device)
        return self.pts_bbox_head.encode(features, lidar2img, frames[0]["pad_hw"], can_bus, history, has_history, own)

    def encode_queue(self, img: Tensor, samples: list[Det3DDataSample]) -> Tensor:
        """Encode img (B, Q, V, 3, H, W) frame by frame; gradients flow through the last frame only."""
        history, queue = None, img.shape[1]
        if queue > 1:
            training = self.training
            self.eval()
            with torch.no_grad():
                past = self.extract_feat(img[:, :-1].flatten(0, 1))
                past = [level.unflatten(0, (len(img), queue - 1)) for level in past]
                for step in range(queue - 1):
                    history = self._step([level[:, step] for level in past], samples, step, history)
            del past  # the current frame's pass, the largest, has their memory
            self.train(training)
            # autocast keeps the weights that it cast without gradient, and the last frame would get no gradient through them
            torch.clear_autocast_cache()
        return self._step(self.extract_feat(img[:, -1]), samples, queue - 1, history)

    def _step(
        self, features: list[Tensor], samples: list[Det3DDataSample], step: int, history: Tensor | None
    ) -> Tensor:
        frames = [sample.frames[step] for sample in samples]
        flags = torch.tensor(
            [bool(f["has_history"]) and history is not None for f in frames], device=features[0].device
        )
        return self.encode(features, frames, history, flags)

    def detect_on(self, levels: list[Tensor], samples: list[Det3DDataSample]) -> HeadOutput:
        """See :meth:`~pipeline.models.detector.MultiCameraDetector.detect_on`."""
        return self.pts_bbox_head(self._step(levels, samples, -1, None))

    def loss(self, inputs: dict[str, Tensor], data_samples: list[Det3DDataSample], **kwargs: Any) -> dict[str, Tensor]:
        """Detection losses of a batch; inputs.img (B, Q, V, 3, H, W)."""
        bev = self.encode_queue(inputs["img"], data_samples)
        return self.pts_bbox_head.loss(bev, *gt_tensors(data_samples, bev.device))

    def stream(self, img: Tensor, samples: list[Det3DDataSample]) -> Tensor:
        """BEV maps (B, H*W, C) of the next frame of B different scenes; img (B, 1, V, 3, H, W)."""
        frames = [sample.frames[-1] for sample in samples]
        scenes = [f["scene_token"] for f in frames]
        if len(set(scenes)) < len(scenes):
            raise FD3DError("a batch holds two frames of one scene; streamed prediction takes one frame per scene")
        missing = [f["token"] for f in frames if f["has_history"] and f["scene_token"] not in self._stream]
        if missing:
            raise FD3DError(f"frame {missing[0]} needs its scene's previous frame first; predict scenes in time order")
        features = self.extract_feat(img[:, -1])
        flags = [bool(f["has_history"]) for f in frames]
        history = None
        if any(flags):
            maps = [self._stream[s] if flag else None for s, flag in zip(scenes, flags, strict=True)]
            like = next(m for m in maps if m is not None)
            history = torch.stack([torch.zeros_like(like) if m is None else m for m in maps])
        bev = self.encode(features, frames, history, torch.tensor(flags, device=img.device))
        self._stream = {scene: bev[i].detach() for i, scene in enumerate(scenes)}
        return bev

    def predict(
        self, inputs: dict[str, Tensor], data_samples: list[Det3DDataSample], **kwargs: Any
    ) -> list[Det3DDataSample]:
        """Boxes of each frame as ``pred_instances_3d`` (bboxes_3d, scores_3d, labels_3d)."""
        return self.with_instances(data_samples, self.pts_bbox_head(self.stream(inputs["img"], data_samples)))

    def _forward(self, inputs: dict[str, Tensor], data_samples: list[Det3DDataSample], **kwargs: Any) -> Tensor:
        return self.pts_bbox_head(self.encode_queue(inputs["img"], data_samples)).code
