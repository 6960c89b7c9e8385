"""A few frames of a scene through a detector."""

import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from pipeline.data.index import FrameIndex, build_index
from pipeline.data.source import FrameSource
from pipeline.errors import FD3DError
from pipeline.evaluation.early import frames_in_words
from pipeline.evaluation.predict import predict
from pipeline.evaluation.scene import detect_scene
from pipeline.evaluation.submission import to_submission
from pipeline.models.build import load_config
from pipeline.models.load import load_detector
from stages.cli import app


@pytest.fixture(scope="module")
def scene(world_index):
    return FrameIndex.load(world_index).splits["world_val"][0]


@pytest.fixture(scope="module")
def predicted(world, world_index, expert_config, expert_checkpoint):
    """The validation scene by the function that evaluation uses."""
    cfg = load_config(expert_config)
    return list(predict(cfg, load_detector(cfg, expert_checkpoint), FrameSource(world_index, world, "world_val"), 0))


def test_boxes_are_those_of_predict_and_drawings_are_images(
    world, world_index, scene, predicted, expert_config, expert_checkpoint, tmp_path
):
    found = list(detect_scene(expert_config, expert_checkpoint, world, scene, tmp_path, frames=2, min_score=0.2))
    index = FrameIndex.load(world_index)
    assert json.loads((tmp_path / "submission.json").read_text()) == to_submission(index, predicted[:2])
    assert [frame.token for frame in found] == [token for token, *_ in predicted[:2]]
    for frame, (_, _, scores, _) in zip(found, predicted, strict=False):
        assert frame.boxes == np.sum(scores >= 0.2) and frame.seconds > 0
        height, width, _ = cv2.imread(str(frame.drawing)).shape
        assert width == 3 * 480 + height
    assert FrameIndex.load(tmp_path / "index.npz").sha256 == index.sha256


def test_weights_that_overflow_are_one_line_and_not_no_boxes(world, scene, expert_config, expert_checkpoint, tmp_path):
    """Centres that are no numbers are inside no range, and would be left out."""
    content = torch.load(expert_checkpoint, weights_only=True)
    state = {name: t * 1e30 if name.startswith("img_neck") else t for name, t in content["state_dict"].items()}
    torch.save(content | {"state_dict": state}, tmp_path / "huge.pth")
    with pytest.raises(FD3DError, match="detections of frame .* are not finite; look at the checkpoint"):
        list(detect_scene(expert_config, tmp_path / "huge.pth", world, scene, tmp_path, frames=1))


def test_the_command_with_and_without_a_checkpoint(
    world, world_index, scene, expert_config, expert_checkpoint, tmp_path
):
    options = ["--scene", scene, "--index", str(world_index), "--frames", "1", "--out", str(tmp_path)]
    for positional, said in (
        ([expert_config, expert_checkpoint, world], "world_expert.pth"),
        ([expert_config, world, "--random-weights"], "RANDOM weights, seed 0"),
    ):
        done = CliRunner().invoke(app, ["detect", *map(str, positional), *options], catch_exceptions=False)
        assert done.exit_code == 0 and said in done.stdout and " boxes from score 0.3" in done.stdout
        assert (
            f"the first 1 of 3 frames of {scene} (--frames 3 takes all); " in done.stdout
            and "peak memory" in done.stdout
        )
        assert len(list(tmp_path.glob("*.jpg"))) == 1
        meta = json.loads((tmp_path / "submission.json").read_text())["meta"]
        assert set(meta) == {"use_camera", "use_lidar", "use_radar", "use_map", "use_external"}
    assert not (tmp_path / "index.npz").exists()


def test_frames_that_are_not_detected_on_are_counted(world, world_index, scene, tmp_path):
    """By the asked number, and those that the making of the index left out."""
    assert frames_in_words(world_index, world, scene, 3) == frames_in_words(world_index, world, scene, 9)
    assert frames_in_words(world_index, world, scene, 3) == f"all 3 frames of {scene}"
    assert frames_in_words(world_index, world, scene, 2) == f"the first 2 of 3 frames of {scene} (--frames 3 takes all)"
    root = tmp_path / "world"
    shutil.copytree(world, root)
    path = root / "v1.0-world/sample_data.json"
    rows = json.loads(path.read_text())
    token = FrameIndex.load(world_index)[FrameIndex.load(world_index).scenes[scene][-1]].token
    lost = next(row for row in rows if row["sample_token"] == token and "/CAM_BACK/" in row["filename"])
    path.write_text(json.dumps([row for row in rows if row is not lost]))
    cut = tmp_path / "cut.npz"
    build_index(root, "v1.0-world", cut, skip_incomplete=True)
    assert frames_in_words(cut, root, scene, 4) == (
        f"all 2 frames of {scene}; the tables have 1 more sample of the scene, left out of index {cut}, as samples that lack a "
        "camera or the LiDAR"
    )
    (root / "v1.0-world/sample.json").write_text("[")
    assert frames_in_words(cut, root, scene, 4) == f"all 2 frames of {scene}"


def test_weights_are_a_checkpoint_or_random(world, scene, expert_config, expert_checkpoint, tmp_path):
    for positional in (
        [expert_config, world],  # neither
        [expert_config, expert_checkpoint, world, "--random-weights"],  # both
        [expert_config, expert_checkpoint, expert_checkpoint, world],  # two
    ):
        with pytest.raises(FD3DError, match="give CONFIG, one CHECKPOINT and ROOT, or CONFIG and ROOT with"):
            CliRunner().invoke(app, ["detect", *map(str, positional), "--scene", scene], catch_exceptions=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scene": "scene-9999"}, "scene 'scene-9999' is not in .*; there are [^,]*, [^,]*, [^,]*$"),
        ({"root": "nowhere"}, "nowhere has no folder of nuScenes tables; give a data root and --version"),
        ({"version": "v1.0-mini"}, "has no folder v1.0-mini"),
        ({"version": "v1.0-mini", "index": True}, "was made from v1.0-world, not v1.0-mini"),
        ({"index": "nowhere.npz"}, "index nowhere.npz does not exist"),
        ({"checkpoint": "nowhere.pth"}, "checkpoint nowhere.pth does not exist"),
        ({"frames": 0}, "frames is 0; it must be at least 1"),
        ({"out": __file__}, "test_detecting.py/submission.json cannot be written"),
    ],
)
def test_bad_input_is_named(world, world_index, scene, expert_config, expert_checkpoint, tmp_path, changes, message):
    from pathlib import Path

    given = {"config": expert_config, "checkpoint": expert_checkpoint, "root": world, "scene": scene, "out": tmp_path}
    given |= {
        k: Path(v) if k in ("root", "index", "checkpoint", "out") and v is not True else v for k, v in changes.items()
    }
    if given.get("index") is True:
        given["index"] = world_index
    with pytest.raises(FD3DError, match=message):
        list(detect_scene(**given))
    assert not (tmp_path / "submission.json").exists()
