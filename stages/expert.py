"""Stage ``expert``: take the checkpoint that the profile names, or train one."""

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer

from stages.params import read_params
from stages.train import frame_source, run_settings


def expert(
    out: Annotated[Path, typer.Option(help="Folder for expert.pth.")] = Path("runs/expert"),
    retrain: Annotated[bool, typer.Option(help="Train even if the profile names a checkpoint.")] = False,
    params: Annotated[Path, typer.Option(help="Reads sections 'data' and 'expert'.")] = Path("params.yaml"),
) -> None:
    """Check and take the expert's checkpoint; without one train the expert."""
    from pipeline.files import write_atomically
    from pipeline.models.build import build_detector, load_config
    from pipeline.models.checkpoints import load_checkpoint
    from pipeline.training import train

    section = read_params(params, "expert")
    cfg = load_config(section["config"])
    if section.get("checkpoint") and not retrain:
        found = load_checkpoint(build_detector(cfg), section["checkpoint"])
        out.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(section["checkpoint"], out / "expert.pth")
        facts = found.training | {"checkpoint": section["checkpoint"]}
    else:
        settings = run_settings(section.get("train", {}))
        facts = train(cfg, cfg.model, frame_source(params, "train"), out / "expert.pth", settings)
    write_atomically(out / "train.json", lambda file: json.dump(facts, file, indent=1))
    print(f"{out / 'expert.pth'}: {facts}")
