"""The memory of a training that shapes tell is what a real forward pass keeps."""

from pathlib import Path
from typing import Any

import pytest
import torch
from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch import Tensor, nn

from pipeline.cost.cameras import rig_cameras
from pipeline.cost.memory import kept_for_backward, training_memory
from pipeline.cost.plan import expert_schema
from pipeline.data.geometry import lidar2img
from pipeline.dumping.settings import DumpSettings
from pipeline.focal.rule import FocalRule
from pipeline.models.attention import DeformableSampler
from pipeline.models.build import build_detector, load_config

CAMERAS = rig_cameras(64, 128)
BATCH = 2


class Sampled(torch.autograd.Function):
    """Deformable sampling that keeps what mmcv's operator on a GPU keeps: its three inputs."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, shapes: Any, locations: Tensor, weights: Tensor) -> Tensor:
        kept = value.contiguous(), locations.contiguous(), weights.contiguous()
        ctx.save_for_backward(*kept)
        read: Tensor = multi_scale_deformable_attn_pytorch(kept[0], shapes, *kept[1:])
        return read


def small(project: Path, name: str) -> Config:
    """A shipped config with a short queue, few queries and a small map; BEVFormer with deformable convolutions."""
    cfg = load_config(project / "configs" / name)
    cfg.model.pts_bbox_head.num_query = 100
    if "bev_h" in cfg.model.pts_bbox_head:
        cfg.queue_length = 2
        cfg.model.pts_bbox_head |= dict(bev_h=20, bev_w=20)
        cfg.model.img_backbone |= dict(
            dcn=dict(type="DeformConv2d", deform_groups=1, fallback_on_stride=False),
            stage_with_dcn=(False, False, True, True),
        )
    return cfg


def real_batch(model: nn.Module, cfg: Config) -> dict[str, Any]:
    """Noise and ten boxes, seen by the cameras that the estimate takes."""
    size = [round(n * cfg.image.scale) for n in CAMERAS.image_hw]
    projection = lidar2img(CAMERAS.intrinsics, CAMERAS.lidar2cam, cfg.image.scale).astype("float32")
    samples = []
    for _ in range(BATCH):
        frames = [
            dict(lidar2img=projection, can_bus=[0.0] * 18, has_history=i > 0, token="", scene_token="")
            for i in range(cfg.queue_length)
        ]
        sample = Det3DDataSample(metainfo={"frames": frames})
        boxes = torch.rand(10, 9) * 10
        sample.gt_instances_3d = InstanceData(
            bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=9), labels_3d=torch.arange(10)
        )
        samples.append(sample)
    images = torch.randint(0, 256, (BATCH, cfg.queue_length, 6, 3, *size), dtype=torch.uint8)
    batch: dict[str, Any] = model.data_preprocessor({"inputs": {"img": images}, "data_samples": samples}, True)
    return batch


def test_a_tensor_that_several_operators_keep_counts_once():
    x = torch.ones(2, 4, requires_grad=True)
    weight = torch.ones(4, 3)
    with kept_for_backward([weight]) as kept:
        y = x.exp()  # keeps its result, which the sine, the cosine and the view's square keep too
        (y.sin() + y.cos()).sum() + (y.view(8) ** 2).sum() + (y @ weight).sum()
    assert [storage.nbytes() for storage in kept] == [2 * 4 * 4]


@pytest.mark.parametrize("name", ["bevformer/tiny.py", "detr3d/r50.py"])
def test_activations_are_those_of_a_training_step(project: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    cfg = small(project, name)
    estimate = training_memory(cfg, CAMERAS, BATCH)
    model = build_detector(cfg).train()
    monkeypatch.setattr(DeformableSampler, "forward", lambda self, *inputs: Sampled.apply(*inputs))
    batch = real_batch(model, cfg)
    held = [batch["inputs"]["img"], *model.parameters(), *model.buffers()]
    with kept_for_backward(held) as kept:
        model(**batch, mode="loss")
    real = sum(storage.nbytes() for storage in kept)
    assert estimate.activations == pytest.approx(real, rel=0.03)  # the losses' own tensors are left out
    assert estimate.images == batch["inputs"]["img"].numel() * 4
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert estimate.optimiser == 3 * 4 * trained  # gradient and two moments


@pytest.mark.parametrize("name", ["bevformer/tiny.py", "detr3d/r50.py"])
def test_a_pass_on_a_mixed_pyramid_is_that_of_a_real_head(project: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    cfg = small(project, name)
    schema = expert_schema(cfg, CAMERAS, DumpSettings(FocalRule()))
    with_head, without = (training_memory(cfg, CAMERAS, BATCH, schema, mixed).distillation for mixed in (True, False))
    model = build_detector(cfg).train()
    monkeypatch.setattr(DeformableSampler, "forward", lambda self, *inputs: Sampled.apply(*inputs))
    batch = real_batch(model, cfg)
    pyramid = [level.detach() for level in model.extract_feat(batch["inputs"]["img"][:, -1])]
    with kept_for_backward([*model.parameters(), *model.buffers()]) as kept:
        model.detect_on(pyramid, batch["data_samples"])
    assert with_head - without == pytest.approx(sum(storage.nbytes() for storage in kept), rel=0.03)
