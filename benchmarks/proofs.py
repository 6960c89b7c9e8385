"""Proof that a change of the code changes no number: run before and after, and compare the two outputs.

Prints a digest of a tiny dump of both families, every row of ``losses.csv`` of 20 steps of every method in both families, the
hash of every row of the sweep, and digests of what ``fd3d evidence`` writes. Takes some six minutes on two cores::

    python -m benchmarks.proofs > before.txt     # on the old revision
    python -m benchmarks.proofs > after.txt      # on the new one
    diff before.txt after.txt
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from pipeline.study.grid import Grid

ROOT = Path(__file__).parents[1]
METHODS = ("plain", "fd3d", "fitnets", "cwd", "mgd", "fgd", "heatmap", "response")
STEPS = 20


def fd3d(*args: str | Path) -> None:
    """Run a command of the project.

    Raises:
        SystemExit: the command failed.
    """
    command = [sys.executable, "-m", "stages.cli", *map(str, args)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"fd3d {' '.join(map(str, args))} failed:\n{done.stderr[-2000:]}")


def digest(files: Iterator[Path] | list[Path], folder: Path) -> str:
    """SHA-256 over names and bytes of files below ``folder``."""
    total = hashlib.sha256()
    for file in sorted(files):
        total.update(str(file.relative_to(folder)).encode() + b"\0" + file.read_bytes())
    return total.hexdigest()


def tiny_profile(work: Path) -> dict[str, Any]:
    """The embedded profile with two training scenes of three frames and trainings of 20 steps."""
    profile = yaml.safe_load((ROOT / "configs/profiles/world.yaml").read_text())
    profile["data"] |= {"root": str(work / "world"), "index": str(work / "index.npz")}
    profile["world"] |= {"train_scenes": 2, "val_scenes": 1, "frames_per_scene": 3}
    profile["dump"]["frames_per_shard"] = 3
    for pair in profile["families"].values():
        pair["apprentice"]["train"] |= {"max_iters": STEPS, "curve_every": 1, "workers": 0}
    return profile


def stores_and_losses(family: str, work: Path, params: Path, dense: Path) -> list[str]:
    """Lines on one family's stores and trainings."""
    run = work / family
    fd3d("expert", "--family", family, "--out", run / "expert", "--params", params)
    expert = run / "expert/detector.pth"
    made: list[str | Path] = ["--family", family, "--config", run / "expert/config.py", "--checkpoint", expert]
    lines = []
    for layout, file in (("focal", params), ("dense", dense)):
        fd3d("dump", *made, "--out", run / layout, "--params", file, "--workers", "0")
        files = [f for f in (run / layout).rglob("*") if f.is_file() and f.name != ".lock"]
        lines.append(f"store {family} {layout} {digest(files, run / layout)}")
    for method in METHODS:
        store = run / ("focal" if method == "fd3d" else "dense")
        out = run / method
        where: list[str | Path] = ["--out", out, "--store", store, "--expert", expert, "--params", params]
        fd3d("train", "--method", method, "--family", family, *where)
        lines += [f"losses {family} {method} {row}" for row in (out / "losses.csv").read_text().splitlines()]
    return lines


def row_hashes(work: Path) -> list[str]:
    """The hash of every row of ``configs/sweep.yaml``, on stand-ins for the index and for early experts."""
    grid = yaml.safe_load((ROOT / "configs/sweep.yaml").read_text())
    profile = yaml.safe_load((ROOT / grid["profile"]).read_text())
    profile["data"]["index"] = str(work / "stand-in.npz")
    (work / "stand-in.npz").write_bytes(b"index")
    grid |= {"profile": str(work / "benchmark.yaml"), "runs": str(work / "sweep"), "table": str(work / "table.csv")}
    (work / "benchmark.yaml").write_text(yaml.safe_dump(profile))
    (work / "grid.yaml").write_text(yaml.safe_dump(grid, sort_keys=False))
    for family, pair in profile["families"].items():
        folder = work / "sweep" / family / "expert"
        folder.mkdir(parents=True)
        shutil.copy(ROOT / pair["expert"]["checkpoint"], folder / "detector.pth")
        (folder / "config.py").write_text(f"_base_ = '{ROOT / pair['expert']['config']}'\n")
        for steps in (1000, 2000, 3000):
            (folder / f"detector-{steps}.pth").write_text(str(steps))
    read = Grid(work / "grid.yaml")
    return sorted(
        f"row {row.group} {row.split} {row.row} {training.family} {training.seed} {_without(work, read, training, row.split)}"
        for training in read.trainings
        for row in training.rows
    )


def _without(work: Path, grid: Grid, training: Any, split: str) -> str:
    """The hash, which must not depend on the temporary folder's name."""
    found = grid.config_hash(training, split)
    assert str(work) not in found
    return found


def evidence(work: Path) -> list[str]:
    """Digests of what ``fd3d evidence`` writes."""
    out = work / "evidence"
    out.mkdir()
    shutil.copy(ROOT / "docs/results.md", out / "results.md")
    where: list[str | Path] = ["--figures", out, "--document", out / "results.md"]
    fd3d("evidence", *where)
    return [f"evidence {file.name} {digest([file], out)}" for file in sorted(out.iterdir())]


def main() -> None:
    """Print all lines."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        profile = tiny_profile(work)
        (work / "params.yaml").write_text(yaml.safe_dump(profile, sort_keys=False))
        profile["dump"]["layout"] = "dense"
        (work / "dense.yaml").write_text(yaml.safe_dump(profile, sort_keys=False))
        fd3d("world", "--root", work / "world", "--params", work / "params.yaml")
        version = profile["data"]["version"]
        fd3d("index", "--root", work / "world", "--version", version, "--out", work / "index.npz")
        print(f"index {digest([work / 'index.npz'], work)}")
        with ThreadPoolExecutor(2) as pool:
            made = partial(stores_and_losses, work=work, params=work / "params.yaml", dense=work / "dense.yaml")
            for lines in pool.map(made, ("bevformer", "detr3d")):
                print("\n".join(lines))
        print("\n".join([*row_hashes(work), *evidence(work)]))


if __name__ == "__main__":
    main()
