"""The pretraining of the benchmark's backbone: its labels, a falling loss, and a file that every student takes whole."""

import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks.pretrain import BACKGROUND, dense_labels, main, pretrain
from pipeline.data.source import FrameSource
from pipeline.models.build import build_detector, load_config
from pipeline.models.pretrained import take_pretrained
from pipeline.models.reading import read_checkpoint
from pipeline.profile import read_profile

CONFIG = "configs/benchmark/apprentice.py"
# looks along x from the origin: column 40 - 20 y / x, row 20 - 20 z / x
CAMERA = torch.tensor([[[40.0, -20.0, 0.0, 0.0], [20.0, 0.0, -20.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]])
HW = 40, 80


@pytest.fixture(autouse=True)
def at_root(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)


def box(x: float, y: float, size: float) -> list[float]:
    return [x, y, 0.0, 0.02, size, size, 0.0, 0.0, 0.0]


def test_a_cell_shows_the_nearest_box_and_its_depth():
    # a wall of 10 m at 10 m covers columns 30..50 and rows 10..30; before it a block of 2 m at 5 m: columns 36..44, rows 16..24
    boxes = torch.tensor([box(10.0, 0.0, 10.0), box(5.0, 0.0, 2.0), box(-5.0, 0.0, 2.0)])
    labels = dense_labels(boxes, torch.tensor([3, 7, 1]), CAMERA, HW)
    assert labels.classes.shape == labels.log_depth.shape == (1, 10, 20)
    wall = labels.classes[0] == 3
    block = labels.classes[0] == 7
    assert labels.classes[0, 5, 10] == 7 and labels.classes[0, 3, 7] == 3 and labels.classes[0, 0, 0] == BACKGROUND
    assert not (labels.classes == 1).any()  # behind the camera
    assert labels.log_depth[0, 5, 10] == pytest.approx(math.log(5)) and labels.log_depth[0, 3, 7] == pytest.approx(
        math.log(10)
    )
    assert labels.log_depth[0][~wall & ~block].abs().max() == 0
    swapped = dense_labels(boxes.flip(0), torch.tensor([1, 7, 3]), CAMERA, HW)
    assert torch.equal(swapped.classes, labels.classes)


def test_a_frame_without_boxes_is_background():
    labels = dense_labels(torch.zeros(0, 9), torch.zeros(0, dtype=torch.long), CAMERA, HW)
    assert (labels.classes == BACKGROUND).all() and (labels.log_depth == 0).all()


def test_every_student_takes_the_whole_backbone(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "backbone.pth"
    main(
        Path(CONFIG),
        out,
        tmp_path / "world",
        tmp_path / "index.npz",
        seed=3,
        scenes=1,
        iterations=12,
        frames=1,
        workers=0,
    )
    assert "held-out cells with a box: class right" in capsys.readouterr().out
    state = torch.load(out, weights_only=True)["state_dict"]
    assert all(name.startswith("backbone.") for name in state)
    notes = json.loads(read_checkpoint(out).meta["pretrained"])
    assert notes["world"]["seed"] == 3 and notes["iterations"] == 12
    for family in read_profile(Path("configs/profiles/benchmark.yaml")).families.values():
        model = build_detector(load_config(family.apprentice.config))
        wanted = {name for name in model.state_dict() if name.startswith("img_backbone.")}
        assert take_pretrained(model, out).names == wanted
        assert all(torch.equal(model.state_dict()[f"img_{name}"], tensor) for name, tensor in state.items())


def test_the_loss_falls(project: Path, source: FrameSource, world: Path, world_index: Path):
    sources = {"train": source, "val": FrameSource(world_index, world, "world_val")}
    _, losses, found = pretrain(load_config(project / CONFIG), sources, iterations=30, frames=1, workers=0)
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert 0 <= found["class_accuracy"] <= 1 and found["depth_error"] < 1.5


def test_the_shipped_backbone_is_the_students(project: Path):
    path = project / "checkpoints/benchmark_backbone.pth"
    assert path.stat().st_size < 2e6
    notes = json.loads(read_checkpoint(path).meta["pretrained"])
    profile = read_profile(project / "configs/profiles/benchmark.yaml")
    assert notes["world"]["seed"] != profile.world.seed
    backbone = load_config(project / CONFIG).model.img_backbone.to_dict()
    assert notes["backbone"] == json.loads(json.dumps(backbone))  # tuples are lists in JSON
    held_out = notes["held_out"]
    assert held_out["class_accuracy"] > held_out["guess_accuracy"] + 0.1
    assert held_out["depth_error"] < 0.7 * held_out["guess_error"]
