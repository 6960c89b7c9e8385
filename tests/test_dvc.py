"""Which stages a change of parameters re-runs, from ``dvc status`` on a copy of the pipeline."""

import itertools
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

FAMILIES = ("bevformer", "detr3d")


@pytest.fixture
def repo(tmp_path: Path, project: Path) -> Path:
    """The pipeline's files with stand-ins for data and outputs, committed to DVC as if every stage had run."""
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(project / name, tmp_path / name)
    for folder in ("pipeline", "store_schema", "configs"):
        shutil.copytree(project / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    pipeline = yaml.safe_load((tmp_path / "dvc.yaml").read_text())
    for file in _outputs(pipeline):
        path = tmp_path / file
        if path.suffix:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(file)
        else:
            path.mkdir(parents=True, exist_ok=True)
    (tmp_path / "data/world/v1.0-world").mkdir(parents=True)
    (tmp_path / "data/world/v1.0-world/scene.json").write_text("[]")
    for family in FAMILIES:
        (tmp_path / f"runs/{family}/store/manifest.json").write_text("{}")
    dvc(tmp_path, "init", "--no-scm", "-q")
    dvc(tmp_path, "commit", "-f", "-q")
    return tmp_path


def _outputs(pipeline: dict) -> list[str]:
    files = set()
    for stage in pipeline["stages"].values():
        body = stage.get("do", stage)
        for kind in ("outs", "metrics", "plots"):
            for entry in body.get(kind, ()):
                path = entry if isinstance(entry, str) else next(iter(entry))
                for family, role in itertools.product(FAMILIES, ("expert", "plain", "fd3d")):
                    names = {"key": family, "item": "world", "item.family": family, "item.role": role}
                    filled = path.replace("${data.index}", "runs/index.npz")
                    for name, value in names.items():
                        filled = filled.replace(f"${{{name}}}", value)
                    files.add(filled)
    return sorted(files)


def dvc(repo: Path, *args: str) -> str:
    return subprocess.run(["dvc", *args], cwd=repo, capture_output=True, text=True, check=True).stdout


def changed(repo: Path) -> set[str]:
    import json

    return set(json.loads(dvc(repo, "status", "--json")))


def test_nothing_is_to_run_again(repo):
    assert changed(repo) == set()


def test_a_distillation_weight_concerns_the_distilled_apprentice_only(repo):
    params = yaml.safe_load((repo / "params.yaml").read_text())
    params["distill"]["w_bev"] = 9.0
    (repo / "params.yaml").write_text(yaml.safe_dump(params))
    assert changed(repo) == {f"apprentice-fd3d@{family}" for family in FAMILIES}
    # what dvc would run: the changed stage and what follows it, not the expert, the dump or the plain apprentice
    planned = dvc(repo, "repro", "--dry")
    for family in FAMILIES:
        assert f"fd3d train --family {family} --method fd3d" in planned
    for other in ("fd3d world", "fd3d index", "fd3d expert", "fd3d dump", "--method plain"):
        assert other not in planned


def test_no_generated_world_with_data_of_ones_own(repo):
    params = yaml.safe_load((repo / "params.yaml").read_text())
    params["data"]["generate"] = []
    (repo / "params.yaml").write_text(yaml.safe_dump(params))
    assert "world" not in dvc(repo, "stage", "list", "--name-only")
