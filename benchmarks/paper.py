"""The paper's three pairs in small: ``python -m benchmarks.paper [--profile paper-tiny ...]``.

For every profile a clone of this checkout gets what a user puts there: a data root named v1.0-trainval with scenes of nuScenes'
splits (generated), pretrained files in the official layouts and an expert's checkpoint as the authors write it (random values),
which ``fd3d convert`` turns into this project's. Then ``dvc repro --dry --force`` plans the profile as it ships (without
``--force`` DVC looks for earlier runs by files that the stages before have not made), and ``dvc repro`` runs it with few updates to the
report. Graph, pair, distiller and store are the shipped ones. What is smaller: images, the side
of the BEV maps, the frames of an update and the number of updates; ``--height 900 --width 1600 --shrink 1 --base-batch 8`` is
the full size. Score thresholds are 0, since an expert of random values trusts no box. The metrics mean nothing.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported

import torch  # noqa: E402
import typer  # noqa: E402
from nuscenes.utils.splits import train as TRAIN_SCENES  # noqa: E402
from nuscenes.utils.splits import val as VAL_SCENES  # noqa: E402
from ruamel.yaml import YAML  # noqa: E402

from benchmarks.gradients import official_layout, started  # noqa: E402
from benchmarks.layouts import write_official  # noqa: E402
from pipeline.data import CLASSES, GENERATED_BY  # noqa: E402
from pipeline.data.world.config import WorldConfig  # noqa: E402
from pipeline.data.world.generate import generate_world  # noqa: E402
from pipeline.models.build import load_config  # noqa: E402
from pipeline.profile import DataSettings, read_profile  # noqa: E402
from pipeline.settings import read_yaml  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
PROFILES = ["paper-tiny", "paper-small", "paper-detr3d"]
# Notes as the authors' files of June 2022 have them: boxes of mmdet3d before 1.0.
NOTES = {"mmdet3d_version": "0.17.1", "time": "Wed Jun  1 12:00:00 2022", "CLASSES": list(CLASSES)}
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    profile: Annotated[list[str], typer.Option(help="Profile of configs/profiles, repeatable.")] = PROFILES,
    folder: Annotated[Path | None, typer.Option(help="Folder of the clones, kept; default: a temporary one.")] = None,
    scenes: Annotated[int, typer.Option(help="Number of training scenes.", min=1)] = 2,
    frames: Annotated[int, typer.Option(help="Number of frames per scene.", min=1)] = 2,
    height: Annotated[int, typer.Option(help="Rows of the original images.")] = 160,
    width: Annotated[int, typer.Option(help="Columns of the original images.")] = 288,
    shrink: Annotated[int, typer.Option(help="Divisor of the sides of the BEV maps.", min=1)] = 4,
    base_batch: Annotated[int, typer.Option(help="Frames of an update.", min=1)] = 1,
    steps: Annotated[int, typer.Option(help="Updates of each training.", min=4)] = 8,
    dry: Annotated[bool, typer.Option("--dry", help="Stop after dvc repro --dry --force.")] = False,
) -> None:
    """Print for each profile what dvc would run, the report's table and the wall time."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="fd3d-paper-") as temporary:
        for name in profile:
            clone = (folder or Path(temporary)).resolve() / name
            started_at = time.perf_counter()
            subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
            shutil.copy(clone / f"configs/profiles/{name}.yaml", clone / "params.yaml")
            prepare(clone, WorldConfig(0, scenes, 1, frames, height, width))
            print(f"== {name}: dvc repro --dry --force", flush=True)
            planned = run(clone, "dvc", "repro", "--dry", "--force")
            print("\n".join(line for line in planned.splitlines() if line.startswith("> ")), flush=True)
            if not dry:
                cut(clone, steps, base_batch, shrink)
                for family in read_profile(Path("params.yaml")).families.values():
                    if family.expert.checkpoint is not None:
                        write_expert(family.expert.config, family.expert.checkpoint, clone)
                print(
                    f"== {name}: dvc repro, {steps} updates of {base_batch} frames, images {height}x{width}", flush=True
                )
                run(clone, "dvc", "repro")
                print((clone / "report/summary.md").read_text())
            print(f"{name}: {time.perf_counter() - started_at:.0f} s\n", flush=True)
            if folder is None:
                shutil.rmtree(clone)


def prepare(clone: Path, world: WorldConfig) -> None:
    """Put data and pretrained files where the clone's profile wants them."""
    os.chdir(clone)  # where the profile's paths lead
    profile = read_profile(Path("params.yaml"))
    make_root(profile.data, world)
    for family in profile.families.values():
        for settings in (family.expert, family.apprentice):
            layout = official_layout(load_config(settings.config))
            assert layout is not None, f"{settings.config} freezes nothing"
            if settings.init is not None and not settings.init.exists():
                write_official(settings.init, layout)


def make_root(data: DataSettings, world: WorldConfig) -> None:
    """A generated data set under nuScenes' name, its scenes renamed to scenes of nuScenes' splits."""
    generate_world(data.root, WorldConfig(**(vars(world) | {"version": data.version})), workers=0)
    folder = data.root / data.version
    own = json.loads((folder / "splits.json").read_text())
    official = dict(zip(own["world_train"], TRAIN_SCENES, strict=False)) | dict(
        zip(own["world_val"], VAL_SCENES, strict=False)
    )
    table = json.loads((folder / "scene.json").read_text())
    (folder / "scene.json").write_text(json.dumps([row | {"name": official[row["name"]]} for row in table]))
    for name in ("splits.json", GENERATED_BY):
        (folder / name).unlink()


def write_expert(config: Path, out: Path, clone: Path) -> None:
    """An expert's file as the authors write it, with random weights, then converted."""
    cfg = load_config(config)
    layout = official_layout(cfg)
    assert layout is not None
    backbone, official = write_official(clone / "backbone.pth", layout), clone / "official.pth"
    model, _ = started(cfg, backbone)
    torch.save({"meta": NOTES, "state_dict": model.state_dict()}, official)
    run(clone, "fd3d", "convert", str(official), str(out), "--config", str(config))
    backbone.unlink()
    official.unlink()


def cut(clone: Path, steps: int, base_batch: int, shrink: int) -> None:
    """Cut the schedules of the clone's profile, by settings and by configs that inherit from the shipped ones."""
    values: dict[str, Any] = read_yaml(clone / "params.yaml")
    for rule in (values["focal"], values["distill"]["rule"]):
        rule["min_score"] = 0.0
    values["distill"]["trust_threshold"] = 0.0
    for name, family in values["families"].items():
        for role in ("expert", "apprentice"):
            settings = family[role]
            settings["train"] |= {"max_iters": steps, "workers": 0, "curve_every": 1}
            if "validate_every" in settings["train"]:
                settings["train"]["validate_every"] = steps  # some steps are a pass each: once, at the end
            path = clone / "configs/scratch" / f"{name}_{role}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(smaller(Path(settings["config"]), base_batch, shrink))
            settings["config"] = path.relative_to(clone).as_posix()
    with open(clone / "params.yaml", "w") as file:
        YAML(typ="safe").dump(values, file)


def smaller(config: Path, base_batch: int, shrink: int) -> str:
    """Text of a config like ``config`` with fewer frames per update and smaller BEV maps."""
    text = f'_base_ = "../../{config}"\n\nschedule = dict(base_batch={base_batch})\n'
    head = load_config(config).model.pts_bbox_head
    if "bev_h" not in head or shrink == 1:
        return text
    side, centre = head.bev_h // shrink, tuple(n // shrink for n in head.transformer.rotate_center)
    return (
        text
        + f"model = dict(pts_bbox_head=dict(bev_h={side}, bev_w={side}, transformer=dict(rotate_center={centre})))\n"
    )


def run(clone: Path, *command: str) -> str:
    """Output of a command in the clone, on the clone's code; the benchmark ends with the output of one that fails."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PYTHONPATH": str(clone), "PATH": path, "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} in {clone} failed:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return done.stdout


if __name__ == "__main__":
    app()
