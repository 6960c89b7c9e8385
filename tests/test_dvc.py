"""Which stages a change of parameters re-runs, from ``dvc status`` on a copy of the pipeline."""

import itertools
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from store_schema import StoreReader
from tests.imports import imports
from tests.readme import commands
from tests.store.synthetic import digest, make_frame, write

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
    for name in ("v1.0-world/scene.json", "samples/CAM_FRONT/a.jpg"):
        (tmp_path / "data/world" / name).parent.mkdir(parents=True)
        (tmp_path / "data/world" / name).write_text("[]")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/world_expert.pth").write_text("weights")
    (tmp_path / "pretrained").mkdir()
    (tmp_path / "pretrained/resnet50.pth").write_text("weights")
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
    return set(json.loads(dvc(repo, "status", "--json")))


def test_nothing_is_to_run_again(repo):
    assert changed(repo) == set()


def test_a_distillation_weight_concerns_the_distilled_apprentice_only(repo):
    params = yaml.safe_load((repo / "params.yaml").read_text())
    params["distill"]["w_bev"] = 9.0
    (repo / "params.yaml").write_text(yaml.safe_dump(params))
    assert changed(repo) == {"check"} | {f"apprentice-fd3d@{family}" for family in FAMILIES}
    # what dvc would run: the changed stage and what follows it, not the expert, the dump or the plain apprentice
    planned = dvc(repo, "repro", "--dry")
    assert planned.index("fd3d check\n") < planned.index("fd3d train")  # a mistake is told before DVC removes a student
    for family in FAMILIES:
        assert f"fd3d train --family {family} --method fd3d" in planned
    for other in ("fd3d world", "fd3d index", "fd3d expert", "fd3d dump", "--method plain"):
        assert other not in planned


def test_a_default_that_is_written_out_can_be_committed(repo):
    """DVC compares texts; the document says what then runs, and how to keep a training."""
    params = yaml.safe_load((repo / "params.yaml").read_text())
    params["dump"]["code_frames"], params["distill"]["size_power"] = 100, 0.0
    (repo / "params.yaml").write_text(yaml.safe_dump(params))
    trained = {f"apprentice-fd3d@{family}" for family in FAMILIES}
    quick = {"check", "report", *(f"dump@{family}" for family in FAMILIES)}
    assert changed(repo) == trained | quick
    dvc(repo, "commit", "-f", "-q", *sorted(trained))
    assert changed(repo) == quick


def test_data_that_are_no_longer_generated_retrain_nothing(repo):
    params = yaml.safe_load((repo / "params.yaml").read_text())
    params["data"] |= {"generate": [], "dev": "other"}  # which decide no frame of a stage
    (repo / "params.yaml").write_text(yaml.safe_dump(params))
    assert changed(repo) == {"check", "index"}
    params["data"]["val"] = "other"
    (repo / "params.yaml").write_text(yaml.safe_dump(params))
    assert not {stage for stage in changed(repo) if stage.startswith("dump")}


def test_no_generated_world_with_data_of_ones_own(repo):
    params = yaml.safe_load((repo / "params.yaml").read_text())
    params["data"]["generate"] = []
    (repo / "params.yaml").write_text(yaml.safe_dump(params))
    assert "world" not in dvc(repo, "stage", "list", "--name-only")


TRAINED = {"apprentice-plain", "apprentice-fd3d"}
CHECKS = {"check", "start"}
ALL_BUT_WORLD = {"index", "expert", "dump", *TRAINED, "evaluate", "report"}
EDITS = {
    "pipeline/data/dataset.py": ALL_BUT_WORLD | CHECKS,
    "pipeline/data/world/render.py": ALL_BUT_WORLD | CHECKS | {"world"},
    "pipeline/models/bevformer/encoder.py": {"expert", "dump", *TRAINED, "evaluate", *CHECKS},
    "pipeline/focal/areas.py": {"dump", "apprentice-fd3d", *CHECKS},
    "pipeline/expert/rows.py": {"expert", "dump", *TRAINED, "evaluate", *CHECKS},
    "pipeline/dumping/recipe.py": {"dump", *CHECKS},
    "pipeline/distill/losses.py": {"apprentice-fd3d", *CHECKS},
    "pipeline/training/run.py": {"expert", *TRAINED, *CHECKS},
    "pipeline/evaluation/submission.py": {"expert", *TRAINED, "evaluate", *CHECKS},
    "pipeline/checking/family.py": CHECKS,
    "pipeline/report/report.py": {"report"},
    "pipeline/viewer/page.py": set(),
    "pipeline/study/grid.py": set(),
    "pipeline/cost/plan.py": CHECKS,  # the shapes of a store that will be
    "configs/world/apprentice.py": {"expert", *TRAINED, *CHECKS},
    "pipeline/profile.py": ALL_BUT_WORLD | {"world", "check", "start"},
    "store_schema/reader.py": {"dump", "apprentice-fd3d", "report", *CHECKS},
    "data/world/samples/CAM_FRONT/a.jpg": ALL_BUT_WORLD | {"world"},
    "data/world/v1.0-world/scene.json": {"world", "index", "expert", *TRAINED, "evaluate"},
    "checkpoints/world_expert.pth": {"check", "start"},
    "pretrained/resnet50.pth": {"check", "start"},
    "runs/bevformer/start/expert.txt": {"start", "expert"},
    "runs/bevformer/start/apprentice.txt": {"start", *TRAINED},
}
"""Stages that run first after an edit of a file in each room; what depends on their outputs follows."""


def test_an_edit_in_a_room_reruns_the_stages_that_stand_on_it(repo: Path):
    for name, stages in EDITS.items():
        file = repo / name
        before = file.read_text()
        file.write_text(before + "\n# edited\n")
        assert {stage.split("@")[0] for stage in changed(repo)} == stages, name
        file.write_text(before)


def test_the_commands_without_dvc_are_its_own(project: Path):
    """Those of docs/pipeline.md, without the options by which DVC's stages give up what was there."""
    wanted = set()
    for stage in yaml.safe_load((project / "dvc.yaml").read_text())["stages"].values():
        cmd = stage.get("do", stage)["cmd"].replace('"', "").replace("${item.family}", "${key}")
        for role in ("expert", "plain", "fd3d"):
            names = {"${item}": "world", "${key}": "bevformer", "${item.role}": role}
            filled = cmd
            for name, value in names.items():
                filled = filled.replace(name, value)
            wanted.add(" ".join(filled.replace("--restart", "").replace("--replace", "").split()))
    assert wanted <= {" ".join(words) for words in commands(project / "docs/pipeline.md")}


EXEMPT = ("pipeline/__init__.py", "pipeline/errors.py", "pipeline/files.py", "stages/")
"""Code that decides no number: errors, writing of files, the thin commands themselves."""
LEAVES = ("pipeline/profile.py", "pipeline/settings.py")
"""Files that a stage depends on, but not on what they import: the profile knows every room's settings, and what a stage takes
of them is under its ``params``."""
ENTRY = {
    "start": ("check", set()),
    "apprentice-plain": ("train", {"_distilled"}),
    "apprentice-fd3d": ("train", {"_plain"}),
}
"""Command file of a stage where it is not called like the stage, and its functions that the stage does not call."""


def reached(project: Path, stage: str) -> set[str]:
    """Names of the files that a stage's command imports, directly or not."""
    command, left_out = ENTRY.get(stage, (stage, set()))
    waiting, seen = [project / f"stages/{command}.py"], set[Path]()
    while waiting:
        file = waiting.pop()
        if file in seen:
            continue
        seen.add(file)
        if file.relative_to(project).as_posix() in LEAVES:
            waiting.append(project / "pipeline/settings.py")  # which reads the values
        else:
            waiting += imports(file, project, left_out if file.parent.name == "stages" else set())
        if file.parent.name == "methods" and file.name == "__init__.py":  # imports its files by name
            waiting += file.parent.glob("*.py")
    return {file.relative_to(project).as_posix() for file in seen}


def test_every_stage_depends_on_the_rooms_that_its_code_lies_in(project: Path):
    for stage, body in yaml.safe_load((project / "dvc.yaml").read_text())["stages"].items():
        deps = [dep for dep in body.get("do", body)["deps"] if dep.startswith(("pipeline", "store_schema"))]
        files = {name for name in reached(project, stage) if not name.startswith(EXEMPT)}
        lacking = sorted(name for name in files if not any(name == dep or name.startswith(f"{dep}/") for dep in deps))
        assert not lacking, f"{stage} of dvc.yaml does not depend on {lacking}"
        idle = [dep for dep in deps if not any(name == dep or name.startswith(f"{dep}/") for name in files)]
        assert not idle, f"{stage} of dvc.yaml depends on {idle}, which its code does not import"


def test_a_data_root_with_a_space_is_one_path(repo: Path):
    params = yaml.safe_load((repo / "params.yaml").read_text())
    params["data"] |= {"root": "My Disk/nuscenes", "generate": []}
    (repo / "params.yaml").write_text(yaml.safe_dump(params))
    shutil.copytree(repo / "data/world", repo / "My Disk/nuscenes")
    assert "index" in changed(repo)
    assert "My Disk" not in dvc(repo, "repro", "--dry", "index").replace("'My Disk/nuscenes", "")


DUMP = """
import sys
import time
from pathlib import Path
from tests.store.synthetic import CONSTANTS, SCENES, STATISTICS, make_frame, writer

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
import hashlib
import json
import sys
from pathlib import Path

import yaml

stage, args = sys.argv[1], dict(zip(sys.argv[2::2], sys.argv[3::2]))
with open(Path(__file__).with_name("calls.txt"), "a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
image, index = Path("data/world/samples/CAM_FRONT/a.jpg"), Path("runs/index.npz")
made = lambda file: json.dumps({"from": hashlib.md5(file.read_bytes()).hexdigest()})
run = f"runs/{args.get('--family')}"
if stage == "check":
    start = [f"{run}/start/expert.txt", f"{run}/start/apprentice.txt"]
    outs, text = (start if "--family" in args else ["runs/profile.txt"]), None
elif stage == "world":
    outs, text = [image, "data/world/v1.0-world/scene.json"], str(yaml.safe_load(open("params.yaml"))["world"])
elif stage == "index":
    outs, text = [index], made(image)
else:
    text = made(index)
    training = ("detector.pth", "config.py", "train.json", "validation.csv", "losses.csv")
    outs = {
        "expert": [f"{run}/expert/{name}" for name in training[:4]],
        "dump": [f"{run}/store/manifest.json", f"{run}/dump.json", f"{run}/coverage.csv"],
        "train": [f"{run}/{args.get('--method')}/{name}" for name in training],
        "evaluate": [f"{args.get('--out')}/submission.json", f"{args.get('--out')}/pr.csv", args.get("--metrics")],
        "report": ["report/index.html", "report/summary.md", "metrics/summary.json"],
    }[stage]
for path in map(Path, outs):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(str(path) if text is None else text)  # a check changes nothing
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


CHECK = "check"
STUDENT = ["train --family bevformer --method fd3d --restart", "evaluate --checkpoint runs/bevformer/fd3d/detector.pth"]


def calls(file: Path) -> list[str]:
    """Stages that ran, without where they wrote."""
    return [line.split(" --out")[0] for line in file.read_text().splitlines()]


def test_an_experiment_here_runs_the_student_and_its_evaluation_alone(repo, experiments):
    dvc(repo, "exp", "run", "-q", "-S", "distill.w_pv=3", "evaluate@bevformer-fd3d")
    assert calls(experiments) == [CHECK, *STUDENT]
    assert yaml.safe_load((repo / "params.yaml").read_text())["distill"]["w_pv"] == 3


def test_an_index_stays_where_its_stage_refuses_the_data_set(repo, experiments):
    """A disk that is not mounted, or a profile of a data set that cannot be indexed, costs no index."""
    before = (repo / "runs/index.npz").read_bytes()
    fd3d = experiments.with_name("fd3d")
    fd3d.write_text(
        fd3d.read_text().replace('if stage == "check"', 'if stage == "index":\n    sys.exit(1)\nif stage == "check"')
    )
    (repo / "data/world/v1.0-world").rename(repo / "elsewhere")
    params = yaml.safe_load((repo / "params.yaml").read_text())
    params["data"]["generate"] = []
    for changes in ({}, {"version": "v1.0-quad"}, {"root": "nowhere"}):
        params["data"] |= changes
        (repo / "params.yaml").write_text(yaml.safe_dump(params))
        with pytest.raises(subprocess.CalledProcessError):
            dvc(repo, "repro", "-q", "index")
        assert (repo / "runs/index.npz").read_bytes() == before


def test_a_refused_check_keeps_what_follows_from_starting(repo, experiments):
    fd3d = experiments.with_name("fd3d")
    fd3d.write_text(
        fd3d.read_text().replace('if stage == "check"', 'if stage == "check":\n    sys.exit(1)\nif stage == "check"')
    )
    params = yaml.safe_load((repo / "params.yaml").read_text())
    params["data"] |= {"generate": [], "version": "v1.0-quad"}
    (repo / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(subprocess.CalledProcessError):
        dvc(repo, "repro", "-q")
    assert calls(experiments) == [CHECK] and (repo / "runs/index.npz").is_file()


def test_images_of_another_light_rerun_everything(repo, experiments):
    params = yaml.safe_load((repo / "params.yaml").read_text())
    params["world"]["photometric"] = 0.3
    (repo / "params.yaml").write_text(yaml.safe_dump(params))
    assert changed(repo) == {"check", "world@world"}
    dvc(repo, "repro", "-q")
    ran = {line.split()[0] for line in calls(experiments)}
    assert ran == {"check", "world", "index", "expert", "dump", "train", "evaluate", "report"}
    assert len(calls(experiments)) == 11, (
        "one family: a check, a world, an index, an expert, a dump, two students, three evaluations, a report"
    )


def test_a_queued_experiment_dumps_in_a_folder_of_its_own(repo, experiments):
    dvc(repo, "exp", "run", "-q", "--queue", "-S", "distill.w_pv=3", "-n", "three", "evaluate@bevformer-fd3d")
    dvc(repo, "queue", "start", "-q")
    for _ in range(300):
        if "Success" in (status := dvc(repo, "queue", "status")) or "Failed" in status:
            break
        time.sleep(0.5)
    assert "three" in status and "Success" in status
    # the store is not in DVC's cache and has to be made there; the expert and the index come from the cache
    assert calls(experiments) == [CHECK, "dump --family bevformer --replace", *STUDENT]
    assert yaml.safe_load((repo / "params.yaml").read_text())["distill"]["w_pv"] == 1


def test_the_sweep_is_a_stage_that_repro_does_not_start(repo, project):
    (repo / "benchmarks/results").mkdir(parents=True)
    shutil.copy(project / "benchmarks/dvc.yaml", repo / "benchmarks/dvc.yaml")
    assert "fd3d sweep" not in dvc(repo, "repro", "--dry")
    assert "fd3d sweep" in dvc(repo, "repro", "--dry", "benchmarks/dvc.yaml")
