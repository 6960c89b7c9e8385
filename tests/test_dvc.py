"""Which stages a change of parameters re-runs, from ``dvc status`` on a copy of the pipeline."""

import itertools
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from store_schema import StoreReader
from tests.store.test_store import digest, make_frame, write

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


DUMP = """
import sys
import time
from pathlib import Path
from tests.store.test_store import CONSTANTS, SCENES, STATISTICS, make_frame, writer

with writer(Path("store")) as store:
    store.write_constants(CONSTANTS)
    for shard in store.pending():
        store.write_shard(shard, {t: make_frame(t) for name in store.shard_scenes(shard) for t in SCENES[name]})
        if not Path("healthy").exists():
            sys.exit(9)
    store.finalise(STATISTICS)
"""
STAGES = """
stages:
  dump:
    cmd: {python} dump.py
    deps: [dump.py]
    outs:
      - store: {{cache: false, persist: true}}
  train:
    cmd: cat store/manifest.json > trained
    deps: [store/manifest.json]
    outs: [trained]
"""


@pytest.fixture
def dumping(tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a dump of two shards, which stops after the first unless it finds 'healthy', and a training."""
    monkeypatch.setenv("PYTHONPATH", str(project))
    (tmp_path / "dump.py").write_text(DUMP)
    (tmp_path / "dvc.yaml").write_text(STAGES.format(python=sys.executable))
    dvc(tmp_path, "init", "--no-scm", "-q")
    return tmp_path


def shard_files(store: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of change of every file that a shard consists of."""
    return {str(f): (f.stat().st_ino, f.stat().st_mtime_ns) for f in store.rglob("c/**/0") if f.is_file()}


def test_a_resumed_dump_keeps_its_shards_and_the_store_is_not_copied(dumping: Path):
    with pytest.raises(subprocess.CalledProcessError):
        dvc(dumping, "repro", "-q")
    before = shard_files(dumping / "store")
    assert before and not (dumping / "store/manifest.json").exists()
    (dumping / "healthy").touch()
    dvc(dumping, "repro", "-q")
    after = shard_files(dumping / "store")
    assert len(after) > len(before) and before.items() <= after.items()
    cached = [file for file in (dumping / ".dvc/cache/files").rglob("*") if file.is_file()]
    assert [file.read_bytes() for file in cached] == [(dumping / "store/manifest.json").read_bytes()]  # 'trained'
    assert changed(dumping) == set()
    # training hangs on the manifest alone: the loss of a shard is the dump's affair
    Path(next(iter(after))).unlink()
    assert changed(dumping) == {"dump"}
    (dumping / "store/manifest.json").write_text("{}")
    assert changed(dumping) == {"dump", "train"}


def test_a_store_travels_through_a_remote(tmp_path: Path):
    write(tmp_path / "store")
    want = digest(tmp_path / "store")
    dvc(tmp_path, "init", "--no-scm", "-q")
    dvc(tmp_path, "remote", "add", "-q", "-d", "shared", str(tmp_path / "remote"))
    dvc(tmp_path, "add", "-q", "store")
    dvc(tmp_path, "push", "-q")
    shutil.rmtree(tmp_path / "store")
    shutil.rmtree(tmp_path / ".dvc" / "cache")
    dvc(tmp_path, "pull", "-q")
    assert digest(tmp_path / "store") == want
    assert StoreReader(tmp_path / "store").read("a" * 32).keys() == make_frame("a" * 32).keys()


FD3D = """
import sys
import time
from pathlib import Path
stage, args = sys.argv[1], dict(zip(sys.argv[2::2], sys.argv[3::2]))
with open(Path(__file__).with_name("calls.txt"), "a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
run = f"runs/{args.get('--family')}"
outs = {
    "dump": [f"{run}/store/manifest.json", f"{run}/dump.json", f"{run}/coverage.csv"],
    "train": [f"{run}/{args.get('--method')}/{name}" for name in ("detector.pth", "config.py", "train.json", "losses.csv")],
    "evaluate": [f"{args.get('--out')}/submission.json", f"{args.get('--out')}/pr.csv", args.get("--metrics")],
}
for path in map(Path, outs[stage]):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")
"""


@pytest.fixture
def experiments(repo: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The pipeline of one family in git, all stages run, with an ``fd3d`` that notes its calls; gives their file."""
    bin = tmp_path_factory.mktemp("bin")
    (bin / "fd3d").write_text(f"#!{sys.executable}\n{FD3D}")
    (bin / "fd3d").chmod(0o755)
    monkeypatch.setenv("PATH", str(bin), prepend=":")
    params = yaml.safe_load((repo / "params.yaml").read_text())
    del params["families"]["detr3d"]
    (repo / "params.yaml").write_text(yaml.safe_dump(params))
    for path in repo.rglob("*.json"):
        path.write_text("{}")
    (repo / ".gitignore").write_text("/data/\n/runs/\n/report/\n")
    shutil.rmtree(repo / ".dvc")
    (repo / "dvc.lock").unlink()
    for command in ("git init -q", "git config user.name me", "git config user.email me@here", "dvc init -q"):
        subprocess.run(command.split(), cwd=repo, check=True)
    dvc(repo, "commit", "-f", "-q")
    subprocess.run("git add -A && git commit -qm all", shell=True, cwd=repo, check=True)
    return bin / "calls.txt"


STUDENT = ["train --family bevformer --method fd3d", "evaluate --checkpoint runs/bevformer/fd3d/detector.pth"]


def calls(file: Path) -> list[str]:
    """Stages that ran, without where they wrote."""
    return [line.split(" --out")[0] for line in file.read_text().splitlines()]


def test_an_experiment_here_runs_the_student_and_its_evaluation_alone(repo, experiments):
    dvc(repo, "exp", "run", "-q", "-S", "distill.w_pv=3", "evaluate@bevformer-fd3d")
    assert calls(experiments) == STUDENT
    assert yaml.safe_load((repo / "params.yaml").read_text())["distill"]["w_pv"] == 3


def test_a_queued_experiment_dumps_in_a_folder_of_its_own(repo, experiments):
    dvc(repo, "exp", "run", "-q", "--queue", "-S", "distill.w_pv=3", "-n", "three", "evaluate@bevformer-fd3d")
    dvc(repo, "queue", "start", "-q")
    for _ in range(300):
        if "Success" in (status := dvc(repo, "queue", "status")) or "Failed" in status:
            break
        time.sleep(0.5)
    assert "three" in status and "Success" in status
    # the store is not in DVC's cache and has to be made there; the expert and the index come from the cache
    assert calls(experiments) == ["dump --family bevformer --replace", *STUDENT]
    assert yaml.safe_load((repo / "params.yaml").read_text())["distill"]["w_pv"] == 1


def test_the_sweep_is_a_stage_that_repro_does_not_start(repo, project):
    (repo / "benchmarks/results").mkdir(parents=True)
    shutil.copy(project / "benchmarks/dvc.yaml", repo / "benchmarks/dvc.yaml")
    assert "fd3d sweep" not in dvc(repo, "repro", "--dry")
    assert "fd3d sweep" in dvc(repo, "repro", "--dry", "benchmarks/dvc.yaml")
