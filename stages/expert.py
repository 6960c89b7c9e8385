"""Stage ``expert``: take the checkpoint that the profile names, or train one."""

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer

from stages.params import CONFIG, DETECTOR, read_family
from stages.train import frame_source, run_settings


def expert(
    family: Annotated[str | None, typer.Option(help="Of the profile; its first one by default.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for detector.pth; runs/FAMILY/expert by default.")] = None,
    retrain: Annotated[bool, typer.Option(help="Train even if the profile names a checkpoint.")] = False,
    params: Annotated[Path, typer.Option(help="Reads 'data' and 'families'.")] = Path("params.yaml"),
) -> None:
    """Check and take the expert's checkpoint; without one train the expert."""
    from pipeline.files import write_atomically
    from pipeline.models.build import build_detector, load_config
    from pipeline.models.checkpoints import load_checkpoint
    from pipeline.training.run import train

    name, pair = read_family(params, family)
    section, out = pair["expert"], out or Path("runs") / name / "expert"
    cfg = load_config(section["config"])
    if section.get("checkpoint") and not retrain:
        found = load_checkpoint(build_detector(cfg), section["checkpoint"])
        out.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(section["checkpoint"], out / DETECTOR)
        cfg.dump(out / CONFIG)
        facts = found.training | {"checkpoint": section["checkpoint"]}
    else:
        settings = run_settings(section.get("train", {}))
        facts = train(cfg, cfg.model, frame_source(params, "train"), out / DETECTOR, settings)
    write_atomically(out / "train.json", lambda file: json.dump(facts, file, indent=1))
    print(f"{out / DETECTOR}: {facts}")
