"""The paper's profiles: what DVC would run for them on a root named as nuScenes, and what the benchmark makes for that."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks.paper import PROFILES, cut, make_root
from pipeline.data.index import build_index
from pipeline.data.world.config import WorldConfig
from pipeline.models.build import load_config
from pipeline.profile import read_profile
from pipeline.settings import read_yaml
from pipeline.training.settings import read_schedule

STAGES = ["index", "expert", "dump", "apprentice-plain", "apprentice-fd3d"]
ROLES = ["expert", "plain", "fd3d"]


@pytest.fixture(scope="module")
def clone(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline's files with DVC, and a generated data root under nuScenes' name."""
    path = tmp_path_factory.mktemp("clone")
    shutil.copy(project / "dvc.yaml", path)
    for folder in ("pipeline", "store_schema", "configs"):
        shutil.copytree(project / folder, path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in ("checkpoints", "pretrained", "metrics/detectors"):
        (path / folder).mkdir(parents=True)
    subprocess.run(["dvc", "init", "--no-scm", "-q"], cwd=path, check=True)
    return path


@pytest.fixture(scope="module")
def root(clone: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(clone)
        profile = read_profile(Path("configs/profiles/paper-small.yaml"))
        make_root(profile.data, WorldConfig(0, 2, 1, 2, 32, 64))
        return clone / profile.data.root


def test_the_root_has_scenes_of_the_official_splits(root: Path, tmp_path: Path):
    index = build_index(root, "v1.0-trainval", tmp_path / "index.npz")
    assert (len(index.select("train")), len(index.select("val"))) == (4, 2)
    assert not set(index.splits["train"]) & set(index.splits["val"])


@pytest.mark.parametrize("name", PROFILES)
def test_dvc_plans_every_stage_of_a_profile(clone: Path, root: Path, name: str):
    shutil.copy(clone / f"configs/profiles/{name}.yaml", clone / "params.yaml")
    told = subprocess.run(
        ["dvc", "repro", "--dry", "--force"], cwd=clone, capture_output=True, text=True, check=True
    ).stdout
    (family,) = read_yaml(clone / "params.yaml")["families"]
    wanted = {"check", f"start@{family}"} | {stage if stage == "index" else f"{stage}@{family}" for stage in STAGES}
    assert set(re.findall(r"Running stage '(.*)'", told)) == wanted | {"report"} | {
        f"evaluate@{family}-{role}" for role in ROLES
    }


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_follows_the_publication_and_may_be_cut(clone: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(clone)
    shutil.copy(clone / f"configs/profiles/{name}.yaml", clone / "params.yaml")
    shipped = read_profile(Path("params.yaml"))
    (family,) = shipped.families.values()
    schedule = read_schedule(load_config(family.apprentice.config))
    assert (schedule.epochs, schedule.base_batch, shipped.data.version) == (24, 8, "v1.0-trainval")
    for role in ROLES:
        scores = getattr(family.published, role)
        assert 0 < scores.mAP < scores.NDS < 100
    # what starts from frozen parameters names its file; an expert without a checkpoint does
    assert family.apprentice.init and bool(family.expert.checkpoint) != bool(family.expert.init)
    cut(clone, steps=8, base_batch=1, shrink=4)
    small = read_profile(Path("params.yaml"))
    before, after = (load_config(one.family().apprentice.config) for one in (shipped, small))
    assert read_schedule(after).base_batch == 1 and small.family().apprentice.train.max_iters == 8
    assert small.dump.layout == shipped.dump.layout and small.family().published == family.published
    if "bev_h" in before.model.pts_bbox_head:
        head = after.model.pts_bbox_head
        assert (head.bev_h, head.bev_w, *head.transformer.rotate_center) == (25, 25, 12, 12)
