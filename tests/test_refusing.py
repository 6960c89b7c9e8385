"""Input that is missing is refused before the libraries are imported that take seconds."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.fixture(scope="module")
def told(project: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, list[str]]]:
    """Errors of all commands, with the heavy libraries that were imported by then, in one process."""
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
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        input=json.dumps([list(REFUSED), HEAVY]),
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("command", REFUSED)
def test_what_is_missing_is_named_before_torch_is_imported(told, command: str):
    line, loaded = told[command]
    assert line.startswith("fd3d: ") and REFUSED[command] in line and line.count("\n") == 1
    assert loaded == []


def test_a_file_is_no_root_and_a_folder_no_file(tmp_path: Path):
    (tmp_path / "a").touch()
    check_needed(config=tmp_path / "a", root=tmp_path, checkpoint=None)
    with pytest.raises(FD3DError, match="data root .*a does not exist"):
        check_needed(root=tmp_path / "a")
    with pytest.raises(FD3DError, match="config .* does not exist; see configs/"):
        check_needed(config=tmp_path)
