"""A batch of four gives what its samples give alone, although their cameras, histories and boxes differ."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.structures import InstanceData
from torch import nn

from pipeline.expert import (
    BEVFormerAdapter,
    BEVReading,
    CameraReading,
    DetectorAdapter,
    DETR3DAdapter,
    ExpertFrame,
    TappedExpert,
)
from pipeline.models.bevformer.grid import grid_points, project_pillars
from pipeline.models.build import build_detector, load_config
from pipeline.models.detr3d.cross_attention import project_points

IMAGE_HW = (64, 96)
BOXES = (3, 0, 5, 1)
# yaw of each sample's rig, and how many of its six cameras look at the scene; the others look at the sky
RIGS = ((0.0, 6), (0.9, 6), (2.1, 1), (0.0, 0))


def camera(yaw: float, at_the_sky: bool = False) -> torch.Tensor:
    """4x4 matrix from the LiDAR frame to pixels of a camera 2 m off the axis that looks along ``yaw``, or straight up."""
    right, forward = (math.sin(yaw), -math.cos(yaw), 0.0), (math.cos(yaw), math.sin(yaw), 0.0)
    rows = [(*right, 0.0), (0.0, 0.0, -1.0, 0.0), (*forward, -2.0), (0.0, 0.0, 0.0, 1.0)]
    if at_the_sky:  # 10 m above the ground, where no point of the range is in front of it
        rows[1], rows[2] = (*forward, 0.0), (0.0, 0.0, 1.0, -10.0)
    pixels = torch.eye(4)
    pixels[0, 0] = pixels[1, 1] = 50.0
    pixels[0, 2], pixels[1, 2] = IMAGE_HW[1] / 2, IMAGE_HW[0] / 2
    return pixels @ torch.tensor(rows)


def frame(sample: int, step: int, has_history: bool, scene: str) -> dict:
    turned, looking = RIGS[sample]
    cameras = [camera(turned + i * math.pi / 3, i >= looking) for i in range(6)]
    can_bus = torch.zeros(18)
    can_bus[:2] = torch.tensor([4.0 - 3 * sample, 1.0 + 2 * sample])  # metres since the previous frame
    can_bus[3:16] = torch.linspace(-1, 1, 13) * (sample + 1)
    can_bus[-2], can_bus[-1] = 0.3 + 1.4 * sample, 11.0 - 9 * sample + step  # radians, and degrees turned
    lidar2img = torch.stack(cameras).numpy()
    known = dict(token=f"{scene}{step}", scene_token=scene, lidar2img=lidar2img, can_bus=can_bus.numpy())
    return known | dict(pad_hw=IMAGE_HW, has_history=has_history)


def make_samples(queue: int) -> list[Det3DDataSample]:
    """Four training samples; the second and fourth have history."""
    samples = []
    for b, count in enumerate(BOXES):
        frames = [frame(b, step, step > 0 and b % 2 == 1, "abcd"[b]) for step in range(queue)]
        sample = Det3DDataSample(metainfo={"token": frames[-1]["token"], "frames": frames})
        place = torch.Generator().manual_seed(b)
        centre = (torch.rand(count, 3, generator=place) - 0.5) * torch.tensor([60.0, 60.0, 2.0])
        boxes = torch.cat([centre, torch.rand(count, 6, generator=place) + 1], 1)
        instances = LiDARInstance3DBoxes(boxes, box_dim=9, origin=(0.5, 0.5, 0.5))
        sample.gt_instances_3d = InstanceData(bboxes_3d=instances, labels_3d=torch.arange(count) % 10)
        samples.append(sample)
    return samples


def detector(project, name: str) -> nn.Module:
    """By config and query source, with random weights everywhere, also where training starts from zeros."""
    config, queries = name.split()
    cfg = load_config(project / "configs" / "world" / f"{config}.py")
    cfg.model.img_backbone.update(base_channels=8, stem_channels=8, norm_eval=True)
    cfg.model.img_neck.in_channels = [16, 32, 64]
    cfg.model.pts_bbox_head.update(num_query=15, max_num=10)
    if queries == "learned":
        cfg.model.pts_bbox_head.query_source = "learned"
        if config == "expert":
            cfg.model.pts_bbox_head.update(bev_h=10, bev_w=12)
            cfg.model.pts_bbox_head.transformer.encoder.num_layers = 2
            cfg.model.pts_bbox_head.transformer.rotate_mode = "nearest"
    torch.manual_seed(0)
    model = build_detector(cfg)
    with torch.no_grad():
        for parameter in model.pts_bbox_head.parameters():
            if parameter.requires_grad and parameter.dim() > 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


MODELS = ["expert learned", "expert heatmap", "detr3d_expert learned", "detr3d_expert heatmap"]


@pytest.fixture(scope="module", params=MODELS)
def model(project, request):
    return detector(project, request.param)


def images(queue: int) -> torch.Tensor:
    return torch.randn(4, queue, 6, 3, *IMAGE_HW, generator=torch.Generator().manual_seed(1))


def forward(model: nn.Module, img: torch.Tensor, samples: list[Det3DDataSample]):
    """BEV map (None without one) and the head's output."""
    if hasattr(model, "encode_queue"):
        bev = model.encode_queue(img, samples)
        return bev, model.pts_bbox_head(bev)
    return None, model.detect(img, samples)


def same(a: torch.Tensor, b: torch.Tensor, what: str, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance, msg=lambda text: f"{what}: {text}")


def compare_with_alone(model: nn.Module, img: torch.Tensor, samples: list[Det3DDataSample]) -> None:
    bev, out = forward(model, img, samples)
    boxes = model.pts_bbox_head.decode(out)
    for b in range(4):
        alone_bev, alone = forward(model, img[b : b + 1], samples[b : b + 1])
        if bev is not None:
            same(bev[b], alone_bev[0], f"BEV map of sample {b}")
        same(out.logits[:, b], alone.logits[:, 0], f"logits of sample {b}")
        same(out.code[:, b], alone.code[:, 0], f"boxes of sample {b}", 1e-3)
        for found, want in zip(boxes[b], model.pts_bbox_head.decode(alone)[0], strict=True):
            same(found, want, f"decoded boxes of sample {b}", 1e-3)


def queue_of(model: nn.Module) -> int:
    return 2 if hasattr(model, "encode_queue") else 1


def test_the_samples_see_different_cells(project):
    """Else the tests below could not tell one sample's cells from another's."""
    encoder: Any = detector(project, MODELS[0]).pts_bbox_head.transformer.encoder
    lidar2img = torch.stack([torch.from_numpy(sample.frames[0]["lidar2img"]) for sample in make_samples(1)])
    points = grid_points(10, 12, lidar2img.device)
    _, mask = project_pillars(points, encoder.heights, encoder.pc_range, lidar2img, IMAGE_HW)
    seen = mask.any(-1)  # (sample, camera, cell)
    assert seen[0].any(-1).all() and not torch.equal(seen[0], seen[1])
    assert seen[2].any(-1).tolist() == [True] + [False] * 5 and not seen[3].any()


def test_in_inference_a_batch_gives_what_its_samples_give_alone(model):
    queue = queue_of(model)
    with torch.no_grad():
        compare_with_alone(model, images(queue), make_samples(queue))


def test_in_training_outputs_and_gradients_are_those_of_the_samples(model):
    queue = queue_of(model)
    img, samples = images(queue), make_samples(queue)
    model.train()  # no dropout in these configs, and norm_eval

    def gradients(chosen: slice) -> dict[str, torch.Tensor]:
        model.zero_grad()
        bev, out = forward(model, img[chosen], samples[chosen])
        mix = torch.Generator().manual_seed(2)
        total = torch.zeros(())
        for tensor in (out.logits, out.code):  # (L, B, N, D), the same mixture for every sample
            total = total + (tensor * torch.randn(tensor[:, :1].shape, generator=mix)).sum()
        total.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    compare_with_alone(model, img, samples)
    together = gradients(slice(0, 4))
    alone = [gradients(slice(b, b + 1)) for b in range(4)]
    model.zero_grad()
    model.eval()
    assert len(together) > 50
    for name, gradient in together.items():
        added = torch.stack([one.get(name, torch.zeros_like(gradient)) for one in alone]).sum(0)
        torch.testing.assert_close(
            gradient,
            added,
            rtol=1e-3,
            atol=1e-4 * max(1.0, added.abs().max().item()),
            msg=partial("{}: {}".format, name),
        )


def test_loss_terms_are_those_of_the_samples_weighted_by_their_boxes(model):
    queue = queue_of(model)
    img, samples = images(queue), make_samples(queue)
    with torch.no_grad():
        together = model.loss({"img": img}, samples)
        alone = [model.loss({"img": img[b : b + 1]}, samples[b : b + 1]) for b in range(4)]

    def seen(sample: Det3DDataSample) -> int:
        """Pairs of a box and a camera that sees its centre, which heatmaps over images count by."""
        centre = sample.gt_instances_3d.bboxes_3d.gravity_center[None]
        return int(project_points(centre, torch.from_numpy(sample.frames[-1]["lidar2img"])[None], IMAGE_HW)[1].sum())

    pairs = [seen(sample) for sample in samples]
    assert pairs[0] > 0 and pairs[3] == 0
    for name, value in together.items():
        over_images = queue == 1 and name in ("loss_heatmap", "loss_geometry")
        counts = pairs if over_images else BOXES
        # every term is a sum over the batch, divided by how many there are (1 for none)
        want = sum(max(n, 1) * terms[name] for n, terms in zip(counts, alone, strict=True)) / max(sum(counts), 1)
        torch.testing.assert_close(value, want, rtol=1e-4, atol=1e-5, msg=partial("{}: {}".format, name))


@pytest.mark.parametrize("name", MODELS[:2])
def test_streamed_scenes_do_not_mix(project, name):
    model = detector(project, name)
    # scene d ends after one frame and e begins in its place; b begins at the second step after a scene of one frame
    steps = [("a0", "x0", "c0", "d0"), ("a1", "b0", "c1", "e0"), ("a2", "b1", "c2", "e1")]
    img = torch.randn(3, 4, 1, 6, 3, *IMAGE_HW, generator=torch.Generator().manual_seed(3))

    def predict(step: int, slots: list[int]) -> dict[str, tuple]:
        frames = [frame(b, int(steps[step][b][1]), steps[step][b][1] != "0", steps[step][b][0]) for b in slots]
        samples = [Det3DDataSample(metainfo={"token": f["token"], "frames": [f]}) for f in frames]
        found = model.predict({"img": img[step, slots]}, samples)
        return {s.token: (s.pred_instances_3d.bboxes_3d.tensor, s.pred_instances_3d.scores_3d) for s in found}

    with torch.no_grad():
        together = {token: boxes for step in range(3) for token, boxes in predict(step, [0, 1, 2, 3]).items()}
        alone = {token: boxes for b in range(4) for step in range(3) for token, boxes in predict(step, [b]).items()}
    assert together.keys() == alone.keys() and len(together) == 12
    for token, (boxes, scores) in together.items():
        same(scores, alone[token][1], f"scores of {token}")
        same(boxes, alone[token][0], f"boxes of {token}", 1e-3)


def test_an_expert_is_read_sample_by_sample(model):
    img = images(1) * 60 + 120
    for adapter in (BEVFormerAdapter() if queue_of(model) == 2 else DETR3DAdapter(), DetectorAdapter(pv="img_neck")):
        expert = TappedExpert(model, adapter, num_queries=8)

        def run(chosen: list[int], expert: TappedExpert = expert) -> list[ExpertFrame]:
            frames = [frame(b, 0, False, "abcd"[b]) for b in chosen]
            samples = [Det3DDataSample(metainfo={"token": f["token"], "frames": [f]}) for f in frames]
            return expert.run({"inputs": {"img": [img[b] for b in chosen]}, "data_samples": samples})[0]

        for b, together in enumerate(run([0, 1, 2, 3])):
            (alone,) = run([b])
            for name, value in vars(alone).items():
                have, want = getattr(together, name), value
                if isinstance(value, (BEVReading, CameraReading)):
                    have, want = list(vars(have).values()), list(vars(value).values())
                torch.testing.assert_close(have, want, atol=1e-3, rtol=1e-3, msg=partial("{}: {}".format, name))
