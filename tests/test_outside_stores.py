"""Nothing but a dump writes into a store's folder."""

import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from pipeline.errors import FD3DError
from pipeline.files import check_outside_stores, check_writable
from stages.cli import app
from tests.store.synthetic import write, writer

EXPERT, WEIGHTS = "configs/world/expert.py", "checkpoints/world_expert.pth"
WRITING = (
    "train --method plain --out STORE",
    "train --method fd3d --store STORE --out STORE --expert checkpoints/world_expert.pth",
    "expert --out STORE",
    f"evaluate --checkpoint {WEIGHTS} --config {EXPERT} --out STORE --metrics m.json",
    f"evaluate --checkpoint {WEIGHTS} --config {EXPERT} --out o --metrics STORE/m.json",
    f"export {EXPERT} {WEIGHTS} STORE/e.onnx",
    "report --out STORE",
    f"detect {EXPERT} {WEIGHTS} WORLD --scene SCENE --out STORE/bev",
    f"convert {WEIGHTS} STORE/c.pth --config {EXPERT}",
    "index --out STORE/i.npz",
    "world --root STORE/data",
    f"dump --config {EXPERT} --checkpoint {WEIGHTS} --out STORE/pv/inner",
)
"""Commands that would write into a store."""


@pytest.fixture
def folder(tmp_path: Path, project: Path, world: Path, world_index: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with profile, store and what commands look for first."""
    monkeypatch.chdir(tmp_path)
    for name in ("configs", "checkpoints"):
        (tmp_path / name).symlink_to(project / name)
    values = yaml.safe_load((project / "params.yaml").read_text())
    values["data"] |= {"root": str(world), "index": str(world_index), "generate": []}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    for family in values["families"]:
        metrics = tmp_path / f"metrics/detectors/{family}/expert.json"
        metrics.parent.mkdir(parents=True)
        metrics.write_text("{}")
    write(tmp_path / "store")
    return tmp_path


@pytest.mark.parametrize("command", WRITING)
def test_a_command_refuses_to_write_into_a_store(folder: Path, world: Path, command: str) -> None:
    before = sorted(folder.rglob("*"))
    places = {"STORE": str(folder / "store"), "WORLD": str(world), "SCENE": "scene-2000"}
    for name, place in places.items():
        command = command.replace(name, place)
    with pytest.raises(FD3DError, match=rf"cannot be written: {folder}/store is a store; give a place outside of it$"):
        CliRunner().invoke(app, command.split(), catch_exceptions=False)
    left = [path for path in sorted(folder.rglob("*")) if path not in before and path.is_relative_to(folder / "store")]
    assert not left


def test_unfinished_and_copied_stores_are_known_and_other_folders_are_not(tmp_path: Path) -> None:
    with writer(tmp_path / "begun"), pytest.raises(FD3DError, match="begun is a store"):
        check_outside_stores(tmp_path / "begun/detector.pth")
    with pytest.raises(FD3DError, match="begun is a store"):  # its markers and recipe
        check_writable(tmp_path / "begun/bev/detector.pth")
    write(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "copy", ignore=shutil.ignore_patterns(".*", "recipe.json"))
    with pytest.raises(FD3DError, match="copy is a store"):
        check_outside_stores(tmp_path / "copy")
    (tmp_path / "page").mkdir()
    for name in ("manifest.json", "index.html"):  # a web page's
        (tmp_path / "page" / name).touch()
    check_outside_stores(tmp_path / "page/new.html")
    check_outside_stores(tmp_path / "store-to-be/detector.pth")
