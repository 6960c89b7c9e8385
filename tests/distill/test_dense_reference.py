"""FD3D's losses and gradients beside a plain reference in float64 that makes every map whole."""

import pytest
import torch
from mmdet3d.registry import DATASETS, MODELS
from torch.nn.functional import grid_sample

from pipeline.data.frames import collate, frame_dataset
from pipeline.distill.build import distiller_config
from pipeline.distill.losses import block_mask, fine_grained_loss
from pipeline.distill.settings import DistillSettings
from pipeline.distill.stored import dense_bev, dense_pv
from pipeline.dumping.dump import dump
from pipeline.dumping.settings import DumpSettings
from pipeline.focal.areas import bev_footprints, project_boxes, pv_rectangles_to_cells, trust_map
from pipeline.focal.rule import FocalRule
from pipeline.models.build import load_config
from store_schema import StoreReader
from tests.distill.doubled import doubled

CONFIGS = {"bevformer": ("expert", "apprentice"), "detr3d": ("detr3d_expert", "detr3d_apprentice")}


def whole_map_losses(model, bev, pv, frames, metas):
    """loss_pv, loss_bev and loss_fine, float64."""
    s, schema, cpu, generated = model.settings, model.schema, torch.device("cpu"), {}
    losses: dict[str, torch.Tensor] = {}
    score = torch.stack([torch.from_numpy(frame["query/score"]) for frame in frames])[:, : s.rule.num_queries]
    trust = torch.where(score >= s.trust_threshold, score, 0.0).double()
    boxes = [torch.from_numpy(frame["query/boxes"])[: s.rule.num_queries] for frame in frames]

    def error(name, generator, student, target, weight):
        scale = doubled(model.scale(name))
        student = student * block_mask(weight > 0, s.mask_ratio, s.block).double()[:, None]
        made = generator(student)
        generated[name] = made * scale.std[:, None, None] + scale.mean[:, None, None]
        squared = (made - scale.standardise(target)) ** 2 * weight[:, None]
        return squared.sum() / (made.shape[1] * weight.sum()).clamp(min=1e-6)

    for slot, level in enumerate(model.levels):
        maps = [dense_pv(frame, schema, level, cpu) for frame in frames]
        weights = []
        for b, (_, stored) in enumerate(maps):
            rectangles, valid = project_boxes(boxes[b], torch.as_tensor(metas[b]["lidar2img"]), metas[b]["pad_hw"])
            size = schema.pv[level][:2]
            areas = pv_rectangles_to_cells(rectangles, valid, size, metas[b]["pad_hw"], s.rule.pv_margin)
            weights.append(trust_map(areas, trust[b]) * stored)
        target = torch.cat([feature for feature, _ in maps]).double()
        one = error(f"pv/{level}", model.pv_generators[slot], pv[slot], target, torch.cat(weights))
        losses["loss_pv"] = losses.get("loss_pv", torch.zeros(())) + s.w_pv * one
    reading = {
        name: torch.stack([torch.from_numpy(frame[f"query/{name}"]) for frame in frames])[
            :, :, : s.rule.num_queries
        ].double()
        for name in ("sampling", "attention", "points", "camera_weights", "sampled")
        if f"query/{name}" in frames[0]
    }
    if bev is None:
        levels = [generated[f"pv/{level}"].unflatten(0, (len(frames), -1)) for level in model.levels]
        lidar2img = torch.stack([torch.as_tensor(meta["lidar2img"]) for meta in metas]).double()
        ones = torch.ones_like(reading["points"][..., :1])
        cam = torch.einsum("bvij,blkj->bvlki", lidar2img, torch.cat([reading["points"], ones], -1))
        uv = cam[..., :2] / cam[..., 2:3].clamp(min=1e-5) / torch.tensor(metas[0]["pad_hw"][::-1])
        read_s, grid = torch.zeros(()), uv.clamp(-1, 2).flatten(0, 1) * 2 - 1
        for i, level in enumerate(levels):
            read = grid_sample(level.flatten(0, 1), grid, align_corners=False).unflatten(0, (len(frames), -1))
            read_s = read_s + torch.einsum("bvclk,blkv->lbkc", read, reading["camera_weights"][..., i])
        read_t = reading["sampled"].transpose(0, 1)
    else:
        pairs = [dense_bev(frame, schema, cpu) for frame in frames]
        pc_range, size = model.manifest["coordinates"]["pc_range"], schema.bev[:2]
        footprints = [bev_footprints(own, pc_range, size, s.rule.bev_margin) for own in boxes]
        weight = torch.stack(
            [trust_map(a, t) * stored for a, t, (_, stored) in zip(footprints, trust, pairs, strict=True)]
        )
        target = torch.stack([feature for feature, _ in pairs]).double()
        losses["loss_bev"] = s.w_bev * error("bev", model.bev_generator, model.restore(bev), target, weight)
        read_s, read_t = (
            deformable(model, feature, reading["sampling"], reading["attention"])
            for feature in (generated["bev"], target)
        )
    return losses | {"loss_fine": s.w_fine * fine_grained_loss(read_s, read_t, trust)}


def deformable(model, bev, locations, attention):
    """The whole map projected for every layer, and each head's part of it sampled: (L, B, K, C)."""
    out = []
    for i in range(attention.shape[1]):
        value = torch.einsum("bchw,dc->bdhw", bev, model.value_proj_weight[i])
        value = (value + model.value_proj_bias[i][:, None, None]).unflatten(1, (attention.shape[3], -1))
        grid = locations[:, i].transpose(1, 2).flatten(0, 1) * 2 - 1
        read = grid_sample(value.flatten(0, 1), grid, align_corners=False).unflatten(0, (len(bev), -1))
        summed = (read * attention[:, i].transpose(1, 2)[:, :, None]).sum(-1)  # (B, M, d, K)
        out.append(summed.flatten(1, 2).transpose(1, 2))
    return torch.stack(out)


@pytest.fixture(scope="module", params=[(f, v) for f in CONFIGS for v in ("float16", "uint8")], ids="-".join)
def case(request, project, source, tmp_path_factory):
    """A distiller in float64, the student's maps of two frames, their targets and metainfo."""
    (family, values), folder = request.param, tmp_path_factory.mktemp("store")
    expert, apprentice = (project / f"configs/world/{name}.py" for name in CONFIGS[family])
    settings = DumpSettings(FocalRule(), values=values, frames_per_shard=3)
    checkpoint = project / f"checkpoints/world_{CONFIGS[family][0]}.pth"
    dump(expert, checkpoint, source, folder / "store", settings, workers=0)
    cfg = load_config(apprentice)
    torch.manual_seed(0)
    distill = DistillSettings(rule=FocalRule(num_queries=30, bev_margin=0.5, pv_margin=0.05))
    model = MODELS.build(distiller_config(cfg, folder / "store", "fd3d", distill))
    model.init_weights()
    batch = model.train().data_preprocessor(
        collate([DATASETS.build(frame_dataset(cfg, source, True))[i] for i in (1, 5)])
    )
    with torch.no_grad():
        model.student(**batch, mode="loss")
    outputs, metas = doubled(model.student_outputs()), [sample.frames[-1] for sample in batch["data_samples"]]
    reader = StoreReader(folder / "store")
    frames = [dict(reader.read(meta["token"], decode=False)) for meta in metas]
    return model.double(), outputs, frames, metas


@pytest.mark.parametrize("silent", [(), (1,), (0, 1)])  # frames whose queries have no trust
def test_losses_and_gradients_are_the_whole_maps(case, silent):
    model, outputs, frames, metas = case
    frames = [f | {"query/score": f["query/score"] * (0 if b in silent else 1)} for b, f in enumerate(frames)]
    bev = None if outputs.bev is None else outputs.bev.detach().requires_grad_()
    pv = [level.detach().requires_grad_() for level in outputs.pv]
    own = [p for name, p in model.named_parameters() if not name.startswith("student.")]
    leaves = [*([] if bev is None else [bev]), *pv, *own]
    torch.manual_seed(3)  # the same hidden blocks
    want = whole_map_losses(model, bev, pv, frames, metas)
    torch.manual_seed(3)
    found = model.focal_losses(bev, pv, doubled(model.targets(frames, metas, torch.device("cpu"))), metas)
    assert found.keys() == want.keys() == {"loss_pv", "loss_fine"} | ({"loss_bev"} if bev is not None else set())
    for name, loss in want.items():
        # targets, trust and positions were float32 on one side
        torch.testing.assert_close(found[name], loss, rtol=1e-5, atol=1e-9)
        slopes = (
            torch.autograd.grad(term, leaves, retain_graph=True, allow_unused=True) for term in (found[name], loss)
        )
        for have, slope in zip(*slopes, strict=True):
            if slope is not None and slope.norm() > 0:
                assert (have - slope).norm() < 1e-4 * slope.norm(), name
            else:
                assert have is None or have.norm() < 1e-9
    assert silent == (0, 1) or all(loss > 0 for loss in want.values())
