"""The stages joined: dump, train, evaluate, on a tiny world."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from mmdet3d.registry import DATASETS, MODELS

import pipeline.distill.methods.fd3d  # noqa: F401  registers FocalDistiller
from pipeline.data.frames import collate, frame_batches, frame_dataset
from pipeline.data.index import FrameIndex
from pipeline.data.source import FrameSource
from pipeline.distill.apprentice import train_apprentice
from pipeline.distill.settings import DistillSettings
from pipeline.dumping.dump import dump
from pipeline.dumping.settings import DumpSettings
from pipeline.errors import FD3DError
from pipeline.expert import TappedExpert, build_adapter
from pipeline.focal.rule import FocalRule
from pipeline.models.build import build_detector, load_config
from pipeline.models.checkpoints import load_checkpoint
from pipeline.models.load import load_detector
from pipeline.training.settings import RunSettings
from store_schema import StoreError, StoreReader
from store_schema.coding import pack_sampling, unpack_sampling
from store_schema.manifest import seal

APPRENTICE = "configs/world/apprentice.py"


@pytest.fixture(scope="module")
def live(source, expert_config, expert_checkpoint):
    """The expert's frames by token, from a direct streamed forward pass."""
    cfg = load_config(expert_config)
    expert = TappedExpert(load_detector(cfg, expert_checkpoint), build_adapter(cfg), FocalRule().num_queries)
    frames = {}
    for batch in frame_batches(cfg, source, None, 0):
        (frame,), (sample,) = expert.run(batch)
        frames[sample.token] = (frame, sample.frames[-1])
    return expert, frames


def distiller(project: Path, store: Path, **settings):
    cfg = load_config(project / APPRENTICE)
    torch.manual_seed(0)
    model = MODELS.build(
        dict(
            type="FocalDistiller",
            student=cfg.model,
            store=str(store),
            settings=settings,
            bev_size=(25, 25),
            bev_channels=64,
            pv_channels=64,
        )
    )
    model.init_weights()
    return model


def test_stored_features_equal_a_direct_forward_pass(store, live):
    reader = StoreReader(store)
    assert set(reader.tokens) == set(live[1])
    for token, (frame, _) in live[1].items():
        row = reader.read(token)
        flat = frame.bev.flatten(1).T.numpy()
        # float16 keeps 11 bits: half a unit in the last place, and what streaming in another process may differ
        np.testing.assert_allclose(row["bev/values"], flat[row["bev/index"]], rtol=1e-3, atol=1e-3)
        for i, level in enumerate(frame.pv):
            flat = level.permute(0, 2, 3, 1).reshape(-1, level.shape[1]).numpy()
            np.testing.assert_allclose(row[f"pv/{i}/values"], flat[row[f"pv/{i}/index"]], rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(row["query/boxes"], frame.boxes.numpy(), atol=1e-4)


def test_losses_from_the_store_equal_those_from_the_live_expert(project, store, live, source):
    model = distiller(project, store, trust_threshold=0.1).eval()
    expert, frames = live
    tokens = list(frames)[:2]
    cfg = load_config(project / APPRENTICE)
    data = DATASETS.build(frame_dataset(cfg, source, train=True))
    items = [data[data.position(token)] for token in tokens]
    batch = model.data_preprocessor(collate(items))
    with torch.no_grad():
        bev = model.student.encode_queue(batch["inputs"]["img"], batch["data_samples"])
        bev = model.taps.read("bev").transpose(1, 2).unflatten(-1, (25, 25))
        pv = model.taps.read("pv")
    metas = [sample.frames[-1] for sample in batch["data_samples"]]
    reader = StoreReader(store)
    cached = model.targets([reader.read(token) for token in tokens], metas, bev.device)

    def dense(frame):
        """The live frame in full precision, every cell of it."""
        row = {
            "bev/values": frame.bev.flatten(1).T.numpy(),
            "bev/index": np.arange(2500),
            "query/boxes": frame.boxes.numpy(),
            "query/score": frame.score.numpy(),
            "query/sampling": frame.reading.sampling.numpy(),
            "query/attention": frame.reading.attention.numpy(),
        }
        for i, level in enumerate(frame.pv):
            row[f"pv/{i}/values"] = level.permute(0, 2, 3, 1).reshape(-1, level.shape[1]).numpy()
            row[f"pv/{i}/index"] = np.arange(len(row[f"pv/{i}/values"]))
        return row

    direct = model.targets([dense(frames[token][0]) for token in tokens], metas, bev.device)
    losses = []
    for targets in (cached, direct):
        torch.manual_seed(3)  # the same hidden blocks
        with torch.no_grad():
            losses.append(model.focal_losses(bev, pv, targets, metas))
    for name, value in losses[0].items():
        assert value.item() > 0
        assert value.item() == pytest.approx(losses[1][name].item(), rel=1e-3), name


def test_sampling_positions_keep_their_precision():
    locations = np.random.default_rng(0).uniform(-0.5, 1.5, 1000).astype(np.float32)
    assert np.abs(unpack_sampling(pack_sampling(locations)) - locations).max() < 2e-5


def test_dump_refuses_another_rule_and_names_it(source, store, expert_config, expert_checkpoint):
    with pytest.raises(StoreError, match="focal.bev_margin = 1.0, now it is 2.0"):
        dump(
            expert_config,
            expert_checkpoint,
            source,
            store,
            DumpSettings(FocalRule(bev_margin=2.0), frames_per_shard=3),
            0,
        )


def test_scenes_may_be_named_in_any_order(source, store, expert_config, expert_checkpoint, tmp_path):
    names = sorted(StoreReader(store).manifest["scenes"], reverse=True)
    settings = DumpSettings(FocalRule(), frames_per_shard=3)
    dump(expert_config, expert_checkpoint, source, tmp_path / "s", settings, 0, names)
    assert digest(tmp_path / "s") == digest(store)


def test_features_that_are_not_finite_stop_the_dump_with_the_token(source, expert_config, expert_checkpoint, tmp_path):
    content = torch.load(expert_checkpoint, weights_only=True)
    content["state_dict"]["img_neck.fpn_convs.0.conv.weight"][:] = 3e38  # finite, but its sums are not
    torch.save(content, tmp_path / "huge.pth")
    with pytest.raises(FD3DError, match=r"of frame [0-9a-f]{32} is not finite"):
        dump(
            expert_config,
            tmp_path / "huge.pth",
            source,
            tmp_path / "s",
            DumpSettings(FocalRule(), frames_per_shard=3),
            0,
        )


def test_settings_that_the_store_does_not_cover_are_refused(project, store):
    with pytest.raises(FD3DError, match="distill.rule.num_queries is 90, but the store covers at most 60"):
        distiller(project, store, rule={"num_queries": 90})
    with pytest.raises(FD3DError, match=r"distill.levels is \[7\], but the store has levels 0..2"):
        distiller(project, store, levels=[7])
    with pytest.raises(FD3DError, match="unknown setting distill.w_pw; known: areas, block"):
        DistillSettings.from_dict({"w_pw": 1})


@pytest.fixture
def workspace(tmp_path, project, world, world_index, store):
    """A folder with parameters, configs and data, but no expert's checkpoint, and a config of the expert that cannot be read."""
    (tmp_path / "expert.py").write_text("raise RuntimeError('training from the store needs nothing of the expert')\n")
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["data"] |= {"root": str(world), "index": str(world_index)}
    training = {"seed": 0, "max_iters": 4, "workers": 0, "checkpoint_every": 2}
    apprentice = {"config": str(tmp_path / "apprentice.py"), "train": training}
    expert = {"config": str(tmp_path / "expert.py"), "checkpoint": None}
    params["families"] = {"bevformer": {"expert": expert, "apprentice": apprentice, "distill": {}}}
    # the apprentice's config inherits from the expert's file: flatten it, then the expert's is gone
    load_config(project / APPRENTICE).dump(tmp_path / "apprentice.py")
    params["distill"]["inherit"] = []
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    return tmp_path


def digest(path: Path) -> dict[str, bytes]:
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file() and f.name != ".lock"}


def fd3d(*args: object, cwd: Path, code: int | None = 0) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "stages.cli", *map(str, args)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment)
    assert code is None or done.returncode == code, done.stderr[-2000:]
    return done


def test_training_needs_no_expert_and_saves_the_plain_detector(workspace, store, project):
    fd3d("train", "--method", "fd3d", "--store", store, "--out", "run", cwd=workspace)
    plain = build_detector(load_config(project / APPRENTICE))
    load_checkpoint(plain, workspace / "run" / "detector.pth")
    with open(workspace / "run" / "losses.csv", newline="") as file:
        row = list(csv.DictReader(file))[-1]
    assert {"loss", "loss_pv", "loss_bev", "loss_fine", "loss_cls", "loss_bbox"} <= row.keys()
    assert all(np.isfinite(float(v)) for v in row.values())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train", "--method", "magic"], "unknown method 'magic'"),
        (["train", "--store", "nowhere"], "store nowhere cannot be read: it is not there"),
        (["train", "--params", "none.yaml"], "none.yaml does not exist"),
        (["dump", "--config", "none.py"], "config none.py does not exist"),
        (["dump"], "config runs/bevformer/expert/config.py does not exist; the stages expert and train write it"),
        (["dump", "--family", "none"], "unknown family 'none' in params.yaml; known: bevformer"),
        (["evaluate", "--checkpoint", "none.pth", "--out", "x", "--metrics", "x.json"], "checkpoint none.pth does not"),
        (["inspect", "nowhere"], "store nowhere cannot be read"),
        (["report"], "run 'dvc repro'"),
        (["index", "--root", "nowhere", "--version", "v1.0-mini"], "nowhere has no folder v1.0-mini"),
    ],
)
def test_bad_input_gets_one_line(workspace, args, message):
    done = fd3d(*args, cwd=workspace, code=1)
    lines = [line for line in done.stderr.splitlines() if line.startswith("fd3d: ")]
    assert len(lines) == 1 and message in lines[0] and "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["train", "inspect", "in Python"])
def test_a_store_of_another_index_is_refused_with_both_hashes(workspace, store, source, world, world_index, command):
    other = shutil.copytree(store, workspace / "other")
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["data"]["index_sha256"] = "0" * 64
    (other / "manifest.json").write_bytes(seal(manifest))
    if command == "in Python":
        config = workspace / "apprentice.py"
        places: dict[str, Any] = dict(store=other, expert=Path("none"), out=workspace / "out/detector.pth")
        with pytest.raises(FD3DError, match=f"other was not made by index {world_index}"):
            train_apprentice(config, "fd3d", DistillSettings(), source=source, run=RunSettings(), **places)
        assert not (workspace / "out").exists()
        return
    args = {
        "train": ["--store", "other"],
        "inspect": ["other", "--index", world_index, "--root", world, "--out", "x.png"],
    }
    done = fd3d(command, *args[command], cwd=workspace, code=1)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("fd3d: ")]
    have = FrameIndex.load(world_index).sha256[:12]
    assert (
        f"store other was not made by index {world_index}: the index's SHA-256 is {have}, the manifest's {'0' * 12}"
        in line
    )


def test_the_dump_refuses_a_student_that_cannot_inherit_from_the_expert(workspace, expert_config, expert_checkpoint):
    """The expert stage may be up to date when the student's settings change."""
    params = yaml.safe_load((workspace / "params.yaml").read_text())
    params["distill"]["inherit"] = ["img_backbone"]
    (workspace / "params.yaml").write_text(yaml.safe_dump(params))
    made = workspace / "runs/bevformer/expert"
    made.mkdir(parents=True)
    shutil.copy(expert_checkpoint, made / "detector.pth")
    load_config(expert_config).dump(made / "config.py")
    shallow = (workspace / "apprentice.py").read_text().replace("depth=18", "depth=34")
    (workspace / "apprentice.py").write_text(shallow)
    done = fd3d("dump", cwd=workspace, code=1)
    assert "fd3d: distill.inherit is ['img_backbone']: " in done.stderr and "another depth" in done.stderr
    assert not (workspace / "runs/bevformer/store").exists()


def test_a_loss_that_is_not_finite_stops_training_with_the_frames(workspace, store):
    params = yaml.safe_load((workspace / "params.yaml").read_text())
    config = (workspace / "apprentice.py").read_text().replace("lr=0.002", "lr=1e30")
    (workspace / "apprentice.py").write_text(config)
    params["families"]["bevformer"]["apprentice"]["train"] |= {"max_iters": 30, "checkpoint_every": 100}
    (workspace / "params.yaml").write_text(yaml.safe_dump(params))
    done = fd3d("train", "--method", "plain", "--out", "run", cwd=workspace, code=1)
    assert "is not finite at step" in done.stderr and "frames " in done.stderr
    assert not (workspace / "run" / "detector.pth").exists()


def set_training(workspace: Path, **values: object) -> None:
    params = yaml.safe_load((workspace / "params.yaml").read_text())
    params["families"]["bevformer"]["apprentice"]["train"] |= values
    (workspace / "params.yaml").write_text(yaml.safe_dump(params))


def test_a_killed_training_resumes_unless_its_settings_changed(workspace):
    set_training(workspace, max_iters=24, checkpoint_every=2)
    args = ["train", "--method", "plain", "--out", "run"]
    kill_at(workspace, args, workspace / "run" / "last_checkpoint")
    set_training(workspace, max_iters=4)
    refused = fd3d(*args, cwd=workspace, code=1)
    assert "train.max_iters = 24, now 4" in refused.stderr and "--restart" in refused.stderr
    set_training(workspace, max_iters=24)
    done = fd3d(*args, cwd=workspace)
    assert "going on from run/iter_" in done.stdout
    assert (workspace / "run" / "detector.pth").exists()


def kill_at(workspace: Path, args: list[str], file: Path) -> None:
    """Run a command and kill it as soon as it has written ``file``."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    process = subprocess.Popen([sys.executable, "-m", "stages.cli", *args], cwd=workspace, env=environment)
    for _ in range(1200):
        if file.exists() or process.poll() is not None:
            break
        time.sleep(0.05)
    assert process.poll() is None, "it ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def test_killed_dumps_resume_to_the_same_store(source, store, expert_config, expert_checkpoint, workspace):
    params = yaml.safe_load((workspace / "params.yaml").read_text())
    params["dump"]["frames_per_shard"] = 3
    (workspace / "params.yaml").write_text(yaml.safe_dump(params))
    expert = ["--config", str(expert_config), "--checkpoint", str(expert_checkpoint), "--workers", "0"]
    args = ["dump", *expert, "--out", "store"]
    command = [sys.executable, "-m", "stages.cli", *args]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    fd3d("dump", *expert, "--out", "whole", cwd=workspace)
    started = time.perf_counter()
    fd3d("dump", *expert, "--out", "whole", cwd=workspace)  # nothing to do
    quickest = time.perf_counter() - started
    rng = np.random.default_rng(0)
    for delay in quickest * rng.uniform(0.6, 1.05, 5):
        process = subprocess.Popen(
            command, cwd=workspace, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    fd3d(*args, cwd=workspace)
    assert digest(workspace / "store") == digest(workspace / "whole")


def test_inspect_tells_and_draws(store, world, world_index, workspace):
    done = fd3d("inspect", store, "--index", world_index, "--root", world, "--out", "frame.png", cwd=workspace)
    for word in ("bev/values", "query/sampling", "6 frames", "stored cells", "checkpoint_sha256", "pc_range"):
        assert word in done.stdout
    assert (workspace / "frame.png").stat().st_size > 50_000


def test_true_boxes_evaluate_without_error(world, world_index, tmp_path):
    from pipeline.data.index import FrameIndex
    from pipeline.evaluation.metrics import evaluate
    from pipeline.evaluation.submission import to_submission

    index = FrameIndex.load(world_index)
    truth = []
    for row in index.select("world_val"):
        frame = index[row]
        seen = frame.num_lidar_pts > 0  # the benchmark ignores the others
        truth.append((frame.token, np.nan_to_num(frame.boxes[seen]), np.ones(seen.sum()), frame.labels[seen]))
    (tmp_path / "s.json").write_text(json.dumps(to_submission(index, truth)))
    found = evaluate(tmp_path / "s.json", world, "v1.0-world", "world_val", tmp_path)
    assert found["errors"]["car"]["trans_err"] < 1e-3 and found["errors"]["car"]["orient_err"] < 1e-3
    assert found["AP"]["car"] > 99
    with pytest.raises(FD3DError, match="split 'nope' is unknown"):
        evaluate(tmp_path / "s.json", world, "v1.0-world", "nope", tmp_path)


def test_excerpt_frames_project_and_load(excerpt_root, tmp_path):
    from pipeline.data.index import build_index

    build_index(excerpt_root, "v1.0-mini", tmp_path / "index.npz")
    cfg = load_config(Path(__file__).resolve().parent.parent / "configs/bevformer/base.py")
    data = DATASETS.build(
        frame_dataset(cfg, FrameSource(tmp_path / "index.npz", excerpt_root, "mini_val"), train=False)
    )
    assert len(data) == 4 and data[0]["inputs"]["img"].shape == (1, 6, 3, 900, 1600)
