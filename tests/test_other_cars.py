"""Cars with other cameras than nuScenes': every stage from the world to the report, at tiny size."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from pipeline.data import CLASSES
from pipeline.data.index import FrameIndex
from pipeline.errors import FD3DError
from pipeline.evaluation.submission import write_submission
from pipeline.profile import read_profile
from stages.dump import dump
from stages.evaluate import evaluate
from stages.expert import expert
from stages.index import index
from stages.inspect import inspect
from stages.report import report
from stages.train import train
from stages.world import world
from store_schema import StoreReader

CARS = ("argoverse2", "five")
TRAIN = {"seed": 0, "threads": 1, "workers": 0, "max_iters": 4, "batch_size": 1}
pytestmark = pytest.mark.filterwarnings("ignore")


class Car:
    """A profile of the project at tiny size, in a folder of its own where its stages ran."""

    def __init__(self, name: str, project: Path, folder: Path) -> None:
        values: dict[str, Any] = yaml.safe_load((project / f"configs/profiles/{name}.yaml").read_text())
        values["world"] |= {"train_scenes": 2, "val_scenes": 1, "frames_per_scene": 2}
        values["focal"] |= {"num_queries": 20, "min_score": 0.0}  # a detector of four steps has low scores
        values["distill"] |= {"trust_threshold": 0.0}
        values["distill"]["rule"] |= {"num_queries": 20, "min_score": 0.0}
        (self.family,) = values["families"]
        for role in ("expert", "apprentice"):
            values["families"][self.family][role]["train"] = TRAIN
        (folder / "configs").symlink_to(project / "configs")
        (folder / "params.yaml").write_text(yaml.safe_dump(values))
        self.data, self.folder = read_profile(folder / "params.yaml").data, folder


@pytest.fixture(scope="module", params=CARS)
def car(request: pytest.FixtureRequest, project: Path, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        made = Car(request.param, project, folder)
        world(root=made.data.root, workers=0)
        index(None, None, None)
        yield made


@pytest.fixture(scope="module")
def stored(car: Car) -> StoreReader:
    expert()
    dump(workers=0)
    return StoreReader(Path(f"runs/{car.family}/store"))


def test_the_index_has_the_cameras_and_classes_of_the_data_set(car: Car) -> None:
    frames = FrameIndex.load(car.data.index, car.data.root)
    sizes = frames[0].image_sizes.tolist()
    if car.family == "bevformer":
        assert frames.cameras == car.data.cameras and len(sizes) == 7
        assert sizes[0] == [224, 160] and sizes[1:] == [[160, 224]] * 6
        np.testing.assert_allclose(frames[0].lidar2ego[:3], np.array([[1, 0, 0, 1.35], [0, 1, 0, 0], [0, 0, 1, 1.64]]))
    else:
        assert set(frames.cameras) == {"front_wide", "left", "right", "rear_left", "rear_right"}
        assert sizes == [[160, 288] if name == "front_wide" else [120, 144] for name in frames.cameras]
        np.testing.assert_array_equal(frames[0].lidar2ego, np.eye(4))
    labels = np.concatenate([frame.labels for frame in frames])
    assert CLASSES.index("car") in labels and len(np.unique(labels)) > 3


def test_a_detector_for_another_number_of_cameras_is_refused_before_it_is_trained(car: Car) -> None:
    values = yaml.safe_load(Path("params.yaml").read_text())
    values["families"][car.family]["apprentice"]["config"] = "configs/world/apprentice.py"
    values["distill"]["inherit"] = []
    values["families"][car.family]["distill"] = {"w_bev": 0.0}
    Path("six.yaml").write_text(yaml.safe_dump(values))
    views = len(FrameIndex.load(car.data.index, car.data.root).cameras)
    with pytest.raises(FD3DError, match=rf"apprentice.py has weights for 6 cameras, the data {views}; set num_cams"):
        expert(params=Path("six.yaml"), out=Path("runs/six"))
    assert not Path("runs/six").exists()


def test_cells_of_padding_are_not_stored(car: Car, stored: StoreReader) -> None:
    frames = FrameIndex.load(car.data.index, car.data.root)
    assert stored.schema.cameras == frames.cameras
    own = frames[0].image_sizes
    for i, (rows, columns, _, stride) in enumerate(stored.schema.pv):
        shape = (len(own), rows, columns)
        for token in stored.tokens:
            camera, row, column = np.unravel_index(stored.read(token)[f"pv/{i}/index"], shape)
            assert len(camera)
            assert (row * stride[0] < own[camera, 0]).all() and (column * stride[1] < own[camera, 1]).all()


def test_a_store_is_looked_into(car: Car, stored: StoreReader) -> None:
    where = (car.data.index, car.data.root)
    inspect(str(stored.storage), *where, Path("page.html"), Path("frame.png"), None, None, 2, 320, 0.0)
    page = Path("page.html").read_text()
    assert all(name in page for name in stored.schema.cameras)
    assert cv2.imread("frame.png").shape[1] > 3 * 480


def test_students_are_trained_evaluated_and_reported(car: Car, stored: StoreReader) -> None:
    for method in ("plain", "fd3d"):
        train(method)
    for role in ("expert", "plain", "fd3d"):
        detector = Path(f"runs/{car.family}/{role}/detector.pth")
        out = Path(f"runs/evaluate/{car.family}/{role}")
        evaluate(out, Path(f"metrics/detectors/{car.family}/{role}.json"), detector, workers=0)
    report()
    summary = json.loads(Path("metrics/summary.json").read_text())
    assert summary.keys() == {"expert", "plain", "fd3d"}
    assert all(0 <= values["NDS"] <= 100 for values in summary.values())
    assert "<img" in Path("report/index.html").read_text()


def test_annotated_boxes_as_a_submission_are_right_for_the_devkit(car: Car) -> None:
    frames = FrameIndex.load(car.data.index, car.data.root)
    found = []
    for row in frames.select(car.data.val):
        frame = frames[row]
        seen = frame.num_lidar_pts > 0
        found.append((frame.token, np.nan_to_num(frame.boxes[seen]), np.ones(seen.sum()), frame.labels[seen]))
    write_submission(Path("truth.json"), frames, found)
    evaluate(Path("truth"), Path("truth/metrics.json"), submission=Path("truth.json"))
    metrics = json.loads(Path("truth/metrics.json").read_text())
    assert metrics["AP"]["car"] == 100
    assert all(metrics["errors"]["car"][name] < 0.01 for name in ("trans_err", "scale_err", "orient_err"))
