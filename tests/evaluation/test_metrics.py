"""Evaluation frame by frame against the devkit's own, of all at once."""

import json
from pathlib import Path

import numpy as np
import pytest
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.detection.evaluate import DetectionEval, NuScenesEval
from nuscenes.nuscenes import NuScenes

from pipeline.data.devkit import open_scenes
from pipeline.data.index import FrameIndex, build_index
from pipeline.errors import FD3DError
from pipeline.evaluation.metrics import ERRORS, evaluate
from pipeline.evaluation.submission import to_submission, write_submission

SPLIT = "world_train"


@pytest.fixture(scope="module")
def detections(world_index: Path) -> list:
    """Noisy copies of the annotations, and boxes anywhere; the last frame has none."""
    index, draw, found = FrameIndex.load(world_index), np.random.default_rng(0), []
    for row in index.select(SPLIT):
        frame = index[row]
        boxes = np.nan_to_num(np.concatenate([frame.boxes, frame.boxes]))
        boxes[:, :2] += draw.normal(size=(len(boxes), 2)) * np.repeat([0.5, 30], len(frame.boxes))[:, None]
        labels = np.concatenate([frame.labels, frame.labels])
        found.append((frame.token, boxes, draw.random(len(boxes)).astype(np.float32), labels))
    token, boxes, scores, labels = found[-1]
    return [*found[:-1], (token, boxes[:0], scores[:0], labels[:0])]


def test_metrics_are_those_of_the_devkit(world: Path, world_index: Path, detections: list, tmp_path: Path) -> None:
    write_submission(tmp_path / "s.json", FrameIndex.load(world_index), detections)
    found = evaluate(tmp_path / "s.json", world, "v1.0-world", SPLIT, tmp_path)
    nusc = NuScenes("v1.0-world", str(world), verbose=False)
    whole = DetectionEval(
        nusc, config_factory("detection_cvpr_2019"), str(tmp_path / "s.json"), SPLIT, str(tmp_path), verbose=False
    )
    want = whole.evaluate()[0].serialize()
    assert 0 < found["mAP"] == round(100 * want["mean_ap"], 2) and found["NDS"] == round(100 * want["nd_score"], 2)
    assert found["mAOE"] == round(want["tp_errors"]["orient_err"], 4)
    assert found["AP"] == {name: round(100 * ap, 2) for name, ap in want["mean_dist_aps"].items()}


def test_metrics_of_real_scenes_are_those_of_the_devkit(excerpt_root: Path, tmp_path: Path) -> None:
    """Split mini_val of v1.0-mini, as the devkit's own NuScenesEval scores the same submission."""
    index, draw, found = build_index(excerpt_root, "v1.0-mini", tmp_path / "index.npz"), np.random.default_rng(0), []
    for row in index.select("mini_val"):
        frame = index[row]
        boxes = np.nan_to_num(frame.boxes)
        boxes[:, :2] += draw.normal(size=(len(boxes), 2))
        boxes[:, 6] += draw.normal(size=len(boxes)) * 0.2
        found.append((frame.token, boxes, draw.random(len(boxes)).astype(np.float32), frame.labels))
    write_submission(tmp_path / "s.json", index, found)
    ours = evaluate(tmp_path / "s.json", excerpt_root, "v1.0-mini", "mini_val", index=index)
    assert ours == evaluate(tmp_path / "s.json", excerpt_root, "v1.0-mini", "mini_val")
    nusc, config = NuScenes("v1.0-mini", str(excerpt_root), verbose=False), config_factory("detection_cvpr_2019")
    devkit = NuScenesEval(nusc, config, str(tmp_path / "s.json"), "mini_val", str(tmp_path), verbose=False)
    want = devkit.evaluate()[0].serialize()
    assert 0 < ours["mAP"] == round(100 * want["mean_ap"], 2) and ours["NDS"] == round(100 * want["nd_score"], 2)
    assert ours["AP"] == {name: round(100 * ap, 2) for name, ap in want["mean_dist_aps"].items()}
    assert [ours[name] for name in ERRORS.values()] == [round(want["tp_errors"][key], 4) for key in ERRORS]


def test_the_file_is_what_json_writes_of_the_whole(world_index: Path, detections: list, tmp_path: Path) -> None:
    index = FrameIndex.load(world_index)
    write_submission(tmp_path / "s.json", index, iter(detections))
    assert (tmp_path / "s.json").read_text() == json.dumps(to_submission(index, detections))


def test_tables_of_some_scenes_have_no_rows_of_others(world: Path) -> None:
    whole = NuScenes("v1.0-world", str(world), verbose=False)
    name = whole.scene[1]["name"]
    part = open_scenes(world, "v1.0-world", [name])
    samples = [row["token"] for row in whole.sample if row["scene_token"] == whole.scene[1]["token"]]
    assert [row["token"] for row in part.sample] == samples
    assert {row["channel"] for row in part.sample_data} == {"LIDAR_TOP"} and len(part.ego_pose) == len(samples)
    for token in samples:
        assert part.get("sample", token)["anns"] == whole.get("sample", token)["anns"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda results, token: results.pop(token), r"has 5 of the 6 samples of world_train and 0 others, first "),
        (
            lambda results, token: results.update(other=[]),
            r"has 6 of the 6 samples of world_train and 1 other, first other",
        ),
        (
            lambda results, token: results.update({token: results[token] * 501}),
            r"501 boxes for sample .*; 500 are allowed",
        ),
    ],
)
def test_submissions_that_do_not_fit_are_refused(
    world: Path, world_index: Path, detections: list, tmp_path: Path, change, message: str
) -> None:
    token, boxes, scores, labels = detections[0]
    one = (token, boxes[:1], scores[:1], labels[:1])
    made = to_submission(FrameIndex.load(world_index), [one, *detections[1:]])
    change(made["results"], token)
    (tmp_path / "s.json").write_text(json.dumps(made))
    with pytest.raises(FD3DError, match=message):
        evaluate(tmp_path / "s.json", world, "v1.0-world", SPLIT, tmp_path)


def test_a_submission_that_is_cut_is_refused(world: Path, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"meta": {}, "results": {"a": [')
    with pytest.raises(FD3DError, match=r"submission .*s.json cannot be read"):
        evaluate(tmp_path / "s.json", world, "v1.0-world", SPLIT, tmp_path)
