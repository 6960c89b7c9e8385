"""What every command does first."""

import os
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.errors import FD3DError
from stages.cli import app
from stages.start import check_devkit


@pytest.fixture
def without_devkit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the devkit is imported yet."""
    for name in [name for name in sys.modules if name.split(".")[0] == "nuscenes"]:
        monkeypatch.delitem(sys.modules, name)


def test_a_module_in_the_place_of_the_devkit_is_refused_in_one_line(project: Path, tmp_path: Path) -> None:
    base = project / "configs" / "_base_"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (base, project)))}
    command = [sys.executable, "-m", "stages.cli", "world", "--root", str(tmp_path / "world")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == "" and not (tmp_path / "world").exists()
    assert done.stderr == (
        f"fd3d: {base}/nuscenes.py hides the package nuscenes of nuscenes-devkit; take {base} out of PYTHONPATH, "
        "and keep modules of your own in another folder\n"
    )


@pytest.mark.parametrize(
    "command",
    [
        "detect configs/world/expert.py . --random-weights --scene x --min-score",
        "inspect store --min-score",
        "plan --rate",
        "plan --train-rate",
    ],
)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-0.5"])
def test_numbers_that_are_none_are_refused(command: str, value: str) -> None:
    with pytest.raises(FD3DError, match=f"^{command.split()[-1]} is {value}; give a number from 0$"):
        CliRunner().invoke(app, [*command.split(), value], catch_exceptions=False)


@pytest.mark.usefixtures("without_devkit")
def test_another_package_of_the_name_is_refused_and_the_devkit_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_devkit()
    (tmp_path / "nuscenes").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    check_devkit()  # a folder without __init__.py, as one of data is, hides nothing
    (tmp_path / "nuscenes" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(FD3DError, match=re.escape(f"{tmp_path / 'nuscenes'} hides the package nuscenes")):
        check_devkit()
    assert "nuscenes" not in sys.modules


def test_no_document_names_a_folder_that_hides_a_package(project: Path) -> None:
    taken, named = {*sys.stdlib_module_names, *packages_distributions()}, set()
    for page in [project / "README.md", *(project / "docs").glob("*.md")]:
        named |= {folder for folder in re.findall(r"PYTHONPATH=([\w./]+)", page.read_text())}
    assert "adapters" in named
    hiding = [path for folder in named for path in (project / folder).glob("*.py") if path.stem in taken]
    assert hiding == []
