"""FD3D for DETR3D from store to apprentice, on a tiny world with an untrained expert."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from mmdet3d.registry import DATASETS, MODELS

import pipeline.distill.methods.fd3d  # noqa: F401  registers FocalDistiller
from pipeline.data.frames import collate, frame_batches, frame_dataset
from pipeline.dumping.dump import dump
from pipeline.dumping.settings import DumpSettings
from pipeline.errors import FD3DError
from pipeline.expert import TappedExpert, build_adapter
from pipeline.focal.rule import FocalRule
from pipeline.models.build import build_detector, load_config
from pipeline.models.fold import fold_batchnorm
from pipeline.models.load import load_detector
from store_schema import StoreReader
from tests.distill.test_sampling import sample_cameras

EXPERT = "configs/world/detr3d_expert.py"
APPRENTICE = "configs/world/detr3d_apprentice.py"
# an untrained expert's scores are about 0.01
RULE = FocalRule(num_queries=20, min_score=0.0)
SETTINGS = {"trust_threshold": 0.0, "rule": RULE.to_dict()}


@pytest.fixture(scope="module")
def store(project, source, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("detr3d") / "store"
    dump(project / EXPERT, None, source, path, DumpSettings(RULE, frames_per_shard=3), workers=0)
    return path


@pytest.fixture(scope="module")
def expert(project):
    """The dumped expert; its batch normalisation is folded as there, so that equal scores keep their order."""
    cfg = load_config(project / EXPERT)
    return cfg, fold_batchnorm(load_detector(cfg, None)), build_adapter(cfg)


def distiller(project: Path, store: Path, **settings):
    cfg = load_config(project / APPRENTICE)
    torch.manual_seed(0)
    sizes = dict(bev_size=None, bev_channels=64, pv_channels=64)
    model = MODELS.build(
        dict(type="FocalDistiller", student=cfg.model, store=str(store), settings=SETTINGS | settings, **sizes)
    )
    model.init_weights()
    return model


def test_the_stored_reading_equals_a_direct_forward(store, expert, source):
    cfg, model, _ = expert
    reader, sampled = StoreReader(store), []
    assert (reader.schema.bev, reader.schema.reading, reader.schema.layers) == (None, "cameras", 3)
    # what comes before the output projection, cameras summed
    layers = [layer.attentions[1].output_proj for layer in model.pts_bbox_head.transformer.decoder.layers]
    hooks = [layer.register_forward_pre_hook(lambda _, args: sampled.append(args[0])) for layer in layers]
    for batch in frame_batches(cfg, source, None, 0):
        sampled.clear()
        ready = model.data_preprocessor(batch)
        with torch.no_grad():
            out = model.detect(ready["inputs"]["img"], ready["data_samples"])
        kept = out.logits[-1, 0].sigmoid().amax(-1).topk(20).indices
        row = reader.read(batch["data_samples"][0].token)
        np.testing.assert_allclose(
            row["query/sampled"], torch.stack([read[0, kept] for read in sampled]).numpy(), rtol=1e-3, atol=1e-5
        )
        np.testing.assert_allclose(row["query/features"], out.states[-1, 0, kept].numpy(), rtol=1e-3, atol=1e-5)
    for hook in hooks:
        hook.remove()


def test_points_lie_in_an_image_exactly_where_they_have_weight(store, expert, source):
    reader, hits = StoreReader(store), 0
    for batch in frame_batches(expert[0], source, None, 0):
        sample = batch["data_samples"][0]
        row, projection = reader.read(sample.token), sample.frames[0]["lidar2img"]  # images of 160x288 need no padding
        points = np.concatenate([row["query/points"], np.ones((3, 20, 1))], -1)
        u, v, depth, _ = np.einsum("vij,lkj->ilkv", projection, points)
        u, v = u / np.maximum(depth, 1e-5), v / np.maximum(depth, 1e-5)
        inside = (depth > 0) & (u > 0) & (u < 288) & (v > 0) & (v < 160)
        np.testing.assert_array_equal(row["query/camera_weights"] > 0, np.repeat(inside[..., None], 3, -1))
        hits += inside.sum()
    assert 0 < hits < 6 * 3 * 20 * 6


def test_losses_from_the_store_equal_those_from_the_live_expert(project, store, expert, source):
    model = distiller(project, store).eval()
    cfg, detector, adapter = expert
    tapped = TappedExpert(detector, adapter, 20)
    frames = [tapped.run(batch)[0][0] for batch in frame_batches(cfg, source, [0, 4], 0)]
    data = DATASETS.build(frame_dataset(load_config(project / APPRENTICE), source, train=True))
    batch = model.data_preprocessor(collate([data[0], data[4]]))
    with torch.no_grad():
        model.student.detect(batch["inputs"]["img"], batch["data_samples"])
    pv, metas = model.taps.read("pv"), [sample.frames[-1] for sample in batch["data_samples"]]

    def whole(frame):
        """The live frame in full precision, every cell of it."""
        reading = frame.reading
        row = {"boxes": frame.boxes, "score": frame.score, "points": reading.points}
        row |= {"camera_weights": reading.weights, "sampled": reading.sampled}
        row = {f"query/{name}": tensor.numpy() for name, tensor in row.items()}
        for i, level in enumerate(frame.pv):
            row[f"pv/{i}/values"] = level.permute(0, 2, 3, 1).flatten(0, 2).numpy()
            row[f"pv/{i}/index"] = np.arange(len(row[f"pv/{i}/values"]))
        return row

    reader, losses = StoreReader(store), []
    for rows in ([reader.read(meta["token"]) for meta in metas], [whole(frame) for frame in frames]):
        targets = model.targets(rows, metas, pv[0].device)
        torch.manual_seed(3)  # the same hidden blocks
        with torch.no_grad():
            losses.append(model.focal_losses(None, list(pv), targets, metas))
    assert losses[0].keys() == {"loss_pv", "loss_fine"}
    for name, value in losses[0].items():
        assert value.item() > 0
        assert value.item() == pytest.approx(losses[1][name].item(), rel=1e-3), name


def test_the_experts_own_pyramid_reads_what_its_queries_read(project, store, expert, source):
    cfg, detector, adapter = expert
    (frame,), _ = TappedExpert(detector, adapter, 20).run(next(frame_batches(cfg, source, [0], 0)))
    data = DATASETS.build(frame_dataset(load_config(project / APPRENTICE), source, train=True))
    meta = data[0]["data_samples"].frames[-1]  # half the expert's image size
    row = {k: torch.from_numpy(v)[None].float() for k, v in StoreReader(store).read(meta["token"]).items() if "y/" in k}
    read = sample_cameras(
        [level[None] for level in frame.pv],
        row["query/points"],
        row["query/camera_weights"],
        torch.from_numpy(meta["lidar2img"])[None],
        meta["img_hw"],  # 80x144 needs no padding
    )
    torch.testing.assert_close(read[:, 0], row["query/sampled"][0], rtol=2e-3, atol=1e-3)


def test_queries_that_read_all_levels_need_all_levels(project, store):
    with pytest.raises(FD3DError, match=r"distill.levels is \[0\], but the expert's queries read all 3 levels"):
        distiller(project, store, levels=[0])
    assert len(distiller(project, store, levels=[0], w_fine=0.0).pv_generators) == 1


def test_training_from_the_store_saves_the_plain_detector(project, store, world, world_index, tmp_path):
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["data"] |= {"root": str(world), "index": str(world_index)}
    params["focal"]["min_score"] = 0.0
    params["distill"] |= SETTINGS | {"inherit": []}
    apprentice = {"config": str(project / APPRENTICE), "train": {"seed": 0, "max_iters": 4, "workers": 0}}
    (tmp_path / "expert.py").write_text("raise RuntimeError('training from the store needs nothing of the expert')\n")
    expert = {"config": str(tmp_path / "expert.py")}
    params["families"] = {"detr3d": {"expert": expert, "apprentice": apprentice, "distill": {}}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    command = [sys.executable, "-m", "stages.cli", "train", "--family", "detr3d", "--method", "fd3d"]
    done = subprocess.run(
        [*command, "--store", str(store)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(project)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    run = tmp_path / "runs" / "detr3d" / "fd3d"
    plain = build_detector(load_config(run / "config.py"))
    plain.load_state_dict(torch.load(run / "detector.pth", weights_only=True)["state_dict"], strict=True)
    with open(run / "losses.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 and all(np.isfinite(float(value)) for row in rows for value in row.values())
    assert all(float(row[name]) > 0 for row in rows for name in ("loss_pv", "loss_fine", "loss_cls", "loss_bbox"))
    assert "loss_bev" not in rows[0]
