"""The DETR3D detector as an mmdet3d model."""

from typing import Any

from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample
from torch import Tensor

from ..detector import MultiCameraDetector, gt_tensors, stack_meta
from ..query_head import HeadOutput
from ..views import view_sizes


@MODELS.register_module()
class DETR3D(MultiCameraDetector):
    """Multi-camera single-frame 3D detector (Wang et al., CoRL 2021); of a queue of frames it sees the last."""

    def detect(self, img: Tensor, samples: list[Det3DDataSample]) -> HeadOutput:
        """Head output for images (B, Q, V, 3, H, W)."""
        return self.detect_on(self.extract_feat(img[:, -1]), samples)

    def detect_on(self, levels: list[Tensor], samples: list[Det3DDataSample]) -> HeadOutput:
        """See :meth:`~pipeline.models.detector.MultiCameraDetector.detect_on`."""
        frames, device = [sample.frames[-1] for sample in samples], levels[0].device
        lidar2img, own = stack_meta(frames, "lidar2img", device), view_sizes(frames, device)
        return self.pts_bbox_head(levels, lidar2img, frames[0]["pad_hw"], own)

    def loss(self, inputs: dict[str, Tensor], data_samples: list[Det3DDataSample], **kwargs: Any) -> dict[str, Tensor]:
        """Detection losses of a batch; inputs.img (B, Q, V, 3, H, W)."""
        out = self.detect(inputs["img"], data_samples)
        return self.pts_bbox_head.output_loss(out, *gt_tensors(data_samples, inputs["img"].device))

    def predict(
        self, inputs: dict[str, Tensor], data_samples: list[Det3DDataSample], **kwargs: Any
    ) -> list[Det3DDataSample]:
        """Boxes of each frame as ``pred_instances_3d`` (bboxes_3d, scores_3d, labels_3d)."""
        return self.with_instances(data_samples, self.detect(inputs["img"], data_samples))

    def _forward(self, inputs: dict[str, Tensor], data_samples: list[Det3DDataSample], **kwargs: Any) -> Tensor:
        return self.detect(inputs["img"], data_samples).code
