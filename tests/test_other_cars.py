"""Cars with other cameras than nuScenes': every stage from the world to the report, at tiny size."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import cv2
import networkx as nx
import numpy as np
import pytest
import torch
import yaml
from dvc.repo import Repo
from typer.testing import CliRunner

from pipeline.data import CLASSES
from pipeline.data.frames import frame_batches
from pipeline.data.index import FrameIndex
from pipeline.errors import FD3DError
from pipeline.evaluation.differences import difference
from pipeline.evaluation.live import Boxes
from pipeline.evaluation.predict import predict
from pipeline.evaluation.submission import write_submission
from pipeline.export.graph import DetectorGraph
from pipeline.export.rig import rig_of
from pipeline.export.runtime import graph_arguments
from pipeline.export.standard import standard_operators
from pipeline.models.build import load_config
from pipeline.models.load import load_detector
from pipeline.profile import read_profile
from stages.cli import app
from stages.evaluate import evaluate
from stages.expert import expert
from stages.inspect import inspect
from store_schema import StoreReader
from tests.readme import section

CARS = {"argoverse2": "bevformer", "five": "detr3d"}
"""Family by profile."""
TRAIN = {"seed": 0, "threads": 1, "workers": 0, "max_iters": 4, "batch_size": 1}
STEPS = [words for words in section("Your own data, in four steps") if words[1] not in ("export", "detect")]
"""The README's four steps."""
pytestmark = pytest.mark.filterwarnings("ignore")


class Car:
    """A profile of the project at tiny size, in a folder of its own, where the README's four steps run.

    Args:
        name: name of the profile, in place of the README's ``argoverse2``.
    """

    def __init__(self, name: str, project: Path, folder: Path) -> None:
        for entry in ("configs", "dvc.yaml"):
            (folder / entry).symlink_to(project / entry)
        self.folder, self.family = folder, CARS[name]
        self.steps = [[word.replace("argoverse2", name) for word in words] for words in STEPS]
        copy, *self.tools, repro = self.steps
        assert copy[0] == "cp" and repro == ["dvc", "repro"]
        self.params = folder / copy[2]
        shutil.copy(folder / copy[1], self.params)
        values: dict[str, Any] = yaml.safe_load(self.params.read_text())
        values["world"] |= {"train_scenes": 1, "val_scenes": 1, "frames_per_scene": 2}
        values["focal"] |= {"num_queries": 20, "min_score": 0.0}  # a detector of four steps has low scores
        values["distill"] |= {"trust_threshold": 0.0}
        values["distill"]["rule"] |= {"num_queries": 20, "min_score": 0.0}
        for role in ("expert", "apprentice"):
            values["families"][self.family][role]["train"] = TRAIN
        self.params.write_text(yaml.safe_dump(values))
        self.data = read_profile(self.params).data
        fd3d("world", "--root", self.data.root, "--workers", 0)
        values["data"]["generate"] = []  # data of one's own
        self.params.write_text(yaml.safe_dump(values))
        self.said = {words[1]: fd3d(*words[1:]) for words in self.tools}

    def repro(self) -> None:
        """The commands of ``dvc repro``, in DVC's order."""
        with Repo.init(str(self.folder), no_scm=True) as repo:
            stages = [stage for stage in nx.dfs_postorder_nodes(repo.index.graph) if stage.cmd]
        self.stages = [stage.addressing for stage in stages]
        for stage in stages:
            _, command, *arguments = shlex.split(stage.cmd)
            fd3d(command, *arguments, *(("--workers", 0) if command in ("dump", "evaluate") else ()))


def fd3d(*arguments: object) -> str:
    """Output of a command that succeeds."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module", params=CARS)
def car(request: pytest.FixtureRequest, project: Path, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield Car(request.param, project, folder)


@pytest.fixture(scope="module")
def stored(car: Car) -> StoreReader:
    """The store, when all steps have run."""
    car.repro()
    return StoreReader(Path(f"runs/{car.family}/store"))


def test_the_index_has_the_cameras_and_classes_of_the_data_set(car: Car) -> None:
    frames = FrameIndex.load(car.data.index, car.data.root)
    sizes = frames[0].image_sizes.tolist()
    assert (frames.cameras, frames.reference) == (car.data.cameras, car.data.reference)
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


def test_the_readmes_four_steps_lead_to_the_report(car: Car, stored: StoreReader) -> None:
    views = len(FrameIndex.load(car.data.index).cameras)
    assert f"{car.data.index}: 4 frames in 2 scenes" in car.said["index"]
    assert f"one sample of {views} cameras" in car.said["complexity"] and "apprentice.py" in car.said["complexity"]
    assert car.said["plan"].startswith(f"== {car.family}: ") and ", 2 frames\n" in car.said["plan"]
    *first, last = (name.partition("@")[0] for name in car.stages)
    assert (sorted(first[:3]), first[3], last) == (["check", "index", "start"], "expert", "report")
    assert len(car.stages) == 11
    summary = json.loads(Path("metrics/summary.json").read_text())
    assert summary.keys() == {"expert", "plain", "fd3d"}
    assert all(0 <= values["NDS"] <= 100 for values in summary.values())
    assert "<img" in Path("report/index.html").read_text()


def test_detect_finds_what_evaluate_finds(car: Car, stored: StoreReader) -> None:
    """Images of several sizes go through the live path, and the profile's index says which cameras count."""
    run = f"runs/{car.family}/fd3d"
    scene = FrameIndex.load(car.data.index).splits[car.data.val][0]
    fd3d("detect", f"{run}/config.py", f"{run}/detector.pth", car.data.root, "--scene", scene, "--out", "runs/detect")
    ours, theirs = (
        json.loads(Path(folder, "submission.json").read_text())["results"]
        for folder in ("runs/detect", f"runs/evaluate/{car.family}/fd3d")
    )
    assert ours == theirs and all(len(boxes) > 10 for boxes in ours.values())


def test_the_graph_of_a_file_computes_what_the_detector_does(car: Car, stored: StoreReader) -> None:
    """In ONNX's operators, on images of several sizes; the padding counts for nothing."""
    run, index = Path(f"runs/{car.family}/fd3d"), FrameIndex.load(car.data.index)
    cfg = load_config(run / "config.py")
    model: Any = load_detector(cfg, run / "detector.pth")
    same: Any = load_detector(cfg, run / "detector.pth")
    rig = rig_of(index)
    view_hw = (np.array(rig.sizes) * cfg.image.scale).astype(np.float32)
    graph = DetectorGraph(same, view_hw).eval()
    rows, history = index.scenes[index.splits[car.data.val][0]], None
    source = car.data.source("val")
    detections = predict(cfg, model, source, 0)
    for batch, (_, *wanted) in zip(frame_batches(cfg, source, None, 0), detections, strict=True):
        images, matrices, motion, follows = graph_arguments(batch)
        for i, (height, width) in enumerate(view_hw.astype(int)):
            images[i, :, height:], images[i, :, :, width:] = 77, 77
        given = [torch.from_numpy(images)[None], torch.from_numpy(matrices)[None]]
        if graph.streams:
            known = torch.zeros(1, *graph.bev_shape) if history is None else history
            given += [torch.from_numpy(motion)[None], known, torch.tensor([bool(follows)])]
        with torch.no_grad(), standard_operators():
            boxes, scores, labels, kept, *bev = graph(*given)
        history = bev[0] if bev else None
        found = Boxes(*(array[0][kept[0]].numpy() for array in (boxes, scores, labels)))
        assert len(found.boxes) > 10 and max(difference(Boxes(*wanted), found)) < 1e-3
    assert len(rows) == 2


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
