"""Input that is missing is refused before the libraries are imported that take seconds."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.data import CAMERAS
from pipeline.data.index import FrameIndex
from pipeline.data.npz import write_arrays
from pipeline.errors import FD3DError
from pipeline.files import check_needed

HEAVY = ("torch", "mmengine", "mmcv", "mmdet", "mmdet3d", "matplotlib", "nuscenes")
EXPERT = "configs/world/expert.py"
WEIGHTS = "checkpoints/world_expert.pth"
REFUSED = {
    "train --params none.yaml": "none.yaml does not exist",
    "train --family other": "unknown family 'other'",
    "train --method other": "unknown method 'other'",
    "train --method plain": "index runs/index.npz does not exist; make it with 'fd3d index'",
    "train --method fd3d": "index runs/index.npz does not exist",
    "expert --family other": "unknown family 'other'",
    "expert --retrain": "index runs/index.npz does not exist",
    "expert --params lost.yaml": "families.bevformer.expert.checkpoint checkpoints/none.pth does not exist; put the file there",
    "dump --family other": "unknown family 'other'",
    "dump": "config runs/bevformer/expert/config.py does not exist; the stages expert and train write it",
    "dump --random-weights": "config runs/bevformer/expert/config.py does not exist; the stages expert and train write it",
    "dump --config none.py": "config none.py does not exist; see configs/",
    f"dump --config {EXPERT}": "index runs/index.npz does not exist",
    f"dump --config {EXPERT} --index some.npz": "data root data/world does not exist",
    f"dump --config {EXPERT} --index some.npz --root .": "checkpoint runs/bevformer/expert/detector.pth does not exist",
    "evaluate --out o --metrics m.json": "give one of --checkpoint and --submission",
    "evaluate --checkpoint none.pth --out o --metrics m.json": "checkpoint none.pth does not exist; run 'dvc repro'",
    f"evaluate --checkpoint {WEIGHTS} --out o --metrics m.json": "config checkpoints/config.py does not exist",
    "evaluate --submission none.json --out o --metrics m.json": "submission none.json does not exist; write one with",
    "detect none.py none.pth . --scene a": "config none.py does not exist",
    f"detect {EXPERT} none.pth . --scene a": "checkpoint none.pth does not exist",
    f"detect {EXPERT} {WEIGHTS} nowhere --scene a": "data root nowhere does not exist",
    f"detect {EXPERT} . --onnx none.onnx --scene a": "none.onnx does not exist; make it with 'fd3d export'",
    f"detect {EXPERT} {WEIGHTS} tables --scene a": "scene 'a' is not in tables; there are s1, s2\n",
    f"detect {EXPERT} {WEIGHTS} . --scene a": ". has no folder of nuScenes tables; give a data root and --version",
    f"detect {EXPERT} . --scene a": "give CONFIG, one CHECKPOINT and ROOT",
    f"export none.py {WEIGHTS} o.onnx": "config none.py does not exist",
    f"export {EXPERT} none.pth o.onnx": "checkpoint none.pth does not exist",
    f"export {EXPERT} {WEIGHTS} o.onnx": "index runs/index.npz does not exist",
    "report": "index runs/index.npz does not exist",
    "check --params quad.yaml": "data/world has no folder v1.0-quad; give the data set's root and one of its versions",
    "index": "data/world has no folder v1.0-world; generate the data set with 'fd3d world --root data/world'",
    "inspect nowhere": "store nowhere cannot be read: it is not there",
    "plan none.py --frames 10 --rate 1": "config none.py does not exist",
    "plan": "runs/index.npz does not exist, so the number of frames is unknown; give --frames",
    "plan --family other": "unknown family 'other'",
    "complexity none.py": "config none.py does not exist",
    f"complexity {EXPERT} --index none.npz": "index none.npz does not exist",
    f"verify . --recompute 1 --config {EXPERT} --checkpoint none.pth": "checkpoint none.pth does not exist",
    "sweep --grid none.yaml": "none.yaml does not exist",
    f"convert none.pth o.pth --config {EXPERT}": "checkpoint none.pth does not exist",
    f"convert {WEIGHTS} o.pth --config none.py": "config none.py does not exist",
    f"convert {WEIGHTS} o.pth --config {EXPERT} --boxes older": "--boxes is 'older'; use auto, old, new",
    f"convert {WEIGHTS} o.pth --config {EXPERT} --shift-current yes": "--shift-current is 'yes'; use auto, true, false",
    f"convert {WEIGHTS} o.pth --config {EXPERT} --classes car,bus": "--classes detects car, bus; needed are nuScenes' car,",
    f"convert {WEIGHTS} {WEIGHTS} --config {EXPERT}": "world_expert.pth is the checkpoint itself; give another file",
    f"convert {WEIGHTS} some.npz/o.pth --config {EXPERT}": "some.npz/o.pth cannot be written",
}
"""Commands, in a project without data, and what they say."""
RUN = """
import contextlib, io, json, sys
from stages.cli import main

commands, heavy = json.loads(sys.stdin.read())
told = {}
for command in commands:
    sys.argv, said = ["fd3d", *command.split()], io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stderr(said):
        main()
    told[command] = said.getvalue(), sorted(sys.modules.keys() & set(heavy))
print(json.dumps(told))
"""


OF_EXPERT = f"--config {EXPERT} --checkpoint {WEIGHTS}"
PLACES = "--out o --metrics m.json"
OTHER = "configs/world/apprentice.py"
FEWER = "focal.num_queries is 6000, but the expert of config configs/world/expert.py has 100 queries; set it to 100 at"
GRID = (
    "does not fit the config configs/world/apprentice.py: it has pts_bbox_head.bev_embedding.weight (2500, 64) instead"
)
SIX = "config configs/world/expert.py has weights for 6 cameras, the data 5; set num_cams=5"
REFUSED_WITH_DATA = {
    f"evaluate {OF_EXPERT} {PLACES} --index bad.npz": "index bad.npz is damaged",
    f"evaluate {OF_EXPERT} {PLACES} --split nowhere": "split 'nowhere' has no scene in this index; it has world_train",
    f"evaluate {OF_EXPERT} {PLACES} --root configs": "configs has no folder v1.0-world, which index",
    f"evaluate {OF_EXPERT} --out params.yaml --metrics m.json": "params.yaml/submission.json cannot be written",
    f"evaluate --checkpoint params.yaml --config {EXPERT} {PLACES}": "params.yaml is not a plain PyTorch checkpoint",
    f"evaluate --submission params.yaml {PLACES} --split nowhere": "split 'nowhere' has no scene in this index",
    f"detect {EXPERT} {WEIGHTS} data/world --scene nowhere": "scene 'nowhere' is not in runs/index.npz; there are scene-",
    f"detect {EXPERT} {WEIGHTS} data/world --scene a --frames 0": "frames is 0; it must be at least 1",
    f"detect {EXPERT} {WEIGHTS} data/world --scene a --out params.yaml": "params.yaml/submission.json cannot be written",
    f"detect {EXPERT} {WEIGHTS} data/world --scene a --version v9": "data/world has no folder v9; give the data set's",
    f"detect {EXPERT} {WEIGHTS} configs --scene a": "configs has no folder of nuScenes tables; give a data root",
    f"dump --out s {OF_EXPERT} --index bad.npz": "index bad.npz is damaged",
    f"dump --out s {OF_EXPERT} --split nowhere": "split 'nowhere' has no scene in this index",
    f"dump --out s {OF_EXPERT} --scene nowhere": "scene nowhere is not in split world_train; it has scene-",
    f"dump --out s {OF_EXPERT} --metrics params.yaml/m.json": "params.yaml/m.json cannot be written",
    f"export {EXPERT} {WEIGHTS} o.pth": "the ONNX file to write is o.pth; give a name that ends in .onnx",
    f"export {EXPERT} {WEIGHTS} params.yaml/o.onnx": "params.yaml/o.onnx cannot be written",
    f"export {EXPERT} {WEIGHTS} o.onnx --index bad.npz": "index bad.npz is damaged",
    f"export {EXPERT} {WEIGHTS} o.onnx --int8 2 --split nowhere": "split 'nowhere' has no scene in this index",
    f"export {EXPERT} {WEIGHTS} o.onnx --int8 99": "--int8 99: split 'world_train' has 4 frames to calibrate on",
    "inspect store --index bad.npz --html o.html": "index bad.npz is damaged",
    "plan --rate 0": "--rate is 0.0; give the measured frames per second",
    "plan --like nowhere": "store nowhere cannot be read: it is not there",
    "plan --coverage bev": "--coverage is 'bev'; give MAP=SHARE with a map and a share in 0..1",
    "train --method plain --params bad.yaml": "index bad.npz is damaged",
    "expert --retrain --params bad.yaml": "index bad.npz is damaged",
    # the last ones: mmengine reads the configs, and stays imported
    f"dump --out params.yaml {OF_EXPERT}": "store params.yaml cannot be written: File exists",
    f"evaluate {OF_EXPERT} {PLACES} --index five.npz": SIX,
    f"detect {EXPERT} {WEIGHTS} data/world --scene scene-2000 --index five.npz": SIX,
    f"dump --out s {OF_EXPERT} --index five.npz": SIX,
    f"export {EXPERT} {WEIGHTS} o.onnx --index five.npz": SIX,
    f"plan {EXPERT} --rate 1 --index five.npz": SIX,
    "plan --index five.npz": SIX,
    "plan --frames 10": "pyramid level 0 of the student is (116, 200), of the expert (114, 200); choose image sizes",
    f"complexity {EXPERT} --index five.npz": SIX,
    f"export {OTHER} {WEIGHTS} o.onnx": GRID,
    f"export {OTHER} {WEIGHTS} o.onnx --height 160 --width 288": GRID,
    f"evaluate --config {OTHER} --checkpoint {WEIGHTS} {PLACES}": GRID,
    f"detect {OTHER} {WEIGHTS} data/world --scene scene-2000": GRID,
    f"dump --out s --config {OTHER} --checkpoint {WEIGHTS}": GRID,
    f"convert {WEIGHTS} o.pth --config {OTHER}": GRID,
    "expert --params other.yaml": GRID,
    f"dump --out s {OF_EXPERT} --params many.yaml": FEWER,
    f"dump --out s --random-weights --config {EXPERT} --params many.yaml": FEWER,
    "plan --frames 10 --height 160 --width 288 --params many.yaml": FEWER,
    f"plan {EXPERT} --frames 10 --rate 1 --params many.yaml": FEWER,
}
"""Likewise in a project with data, and with an index of five cameras."""


def ran(commands: list[str], folder: Path) -> dict[str, tuple[str, list[str]]]:
    """Errors of commands, with the heavy libraries that were imported by then, in one process."""
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        input=json.dumps([commands, HEAVY]),
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def told(project: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, list[str]]]:
    """Of a project without data."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "configs").symlink_to(project / "configs")
    (folder / "checkpoints").symlink_to(project / "checkpoints")
    (folder / "some.npz").touch()
    (folder / "tables/v1").mkdir(parents=True)
    (folder / "tables/v1/sample_data.json").touch()
    (folder / "tables/v1/scene.json").write_text('[{"name": "s1"}, {"name": "s2"}]')
    shutil.copy(project / "params.yaml", folder / "params.yaml")
    profile = (folder / "params.yaml").read_text()
    assert WEIGHTS in profile
    (folder / "lost.yaml").write_text(profile.replace(WEIGHTS, "checkpoints/none.pth"))
    quad = profile.replace("generate: [world]", "generate: []").replace("version: v1.0-world", "version: v1.0-quad")
    (folder / "quad.yaml").write_text(quad)
    return ran(list(REFUSED), folder)


@pytest.fixture(scope="module")
def told_with_data(project: Path, world: Path, world_index: Path, tmp_path_factory) -> dict[str, tuple[str, list[str]]]:
    """Of a project with data."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("configs", "checkpoints"):
        (folder / name).symlink_to(project / name)
    for name in ("data", "runs"):
        (folder / name).mkdir()
    (folder / "data/world").symlink_to(world)
    shutil.copy(world_index, folder / "runs/index.npz")
    (folder / "bad.npz").write_bytes(world_index.read_bytes()[:2000])
    arrays = dict(FrameIndex.load(world_index).arrays)
    columns = ("image_paths", "image_sizes", "image_bytes", "image_crc32", "intrinsics", "lidar2cam")
    arrays |= {name: arrays[name][:, :5] for name in columns} | {"cameras": np.array(json.dumps(CAMERAS[:5]))}
    with open(folder / "five.npz", "wb") as file:
        write_arrays(file, arrays)
    profile = (project / "params.yaml").read_text()
    (folder / "params.yaml").write_text(profile)
    (folder / "other.yaml").write_text(profile.replace(EXPERT, OTHER))
    (folder / "many.yaml").write_text(profile.replace("num_queries: 60", "num_queries: 6000"))
    (folder / "bad.yaml").write_text(profile.replace("runs/index.npz", "bad.npz"))
    return ran(list(REFUSED_WITH_DATA), folder)


@pytest.mark.parametrize("command", REFUSED)
def test_what_is_missing_is_named_before_torch_is_imported(told, command: str):
    line, loaded = told[command]
    assert line.startswith("fd3d: ") and REFUSED[command] in line and line.count("\n") == 1
    assert loaded == []


@pytest.mark.parametrize("command", REFUSED_WITH_DATA)
def test_what_does_not_fit_is_named_before_torch_is_imported(told_with_data, command: str):
    line, loaded = told_with_data[command]
    assert line.startswith("fd3d: ") and REFUSED_WITH_DATA[command] in line and line.count("\n") == 1
    read = REFUSED_WITH_DATA[command][:6] in (SIX[:6], GRID[:6], FEWER[:6], "pyrami") or command.startswith(
        "dump --out params.yaml"
    )  # the config
    assert set(loaded) <= ({"mmengine"} if read else set())


def test_a_dump_without_a_config_names_the_option(told):
    assert "or name another by --config, such as one of configs/" in told["dump --random-weights"][0]


def test_a_file_is_no_root_and_a_folder_no_file(tmp_path: Path):
    (tmp_path / "a").touch()
    check_needed(config=tmp_path / "a", root=tmp_path, checkpoint=None)
    with pytest.raises(FD3DError, match="data root .*a does not exist"):
        check_needed(root=tmp_path / "a")
    with pytest.raises(FD3DError, match="is no regular file but a folder, pipe, socket or device; give a file"):
        check_needed(config=tmp_path)
