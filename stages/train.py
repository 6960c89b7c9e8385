"""Stage ``apprentice``: train the small detector, plain or with FD3D's losses from the store."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.errors import FD3DError
from stages.params import DETECTOR, read_family, read_params

METHODS = ("plain", "fd3d")


def frame_source(params: Path, split: str) -> Any:
    """Frames of the profile's ``train`` or ``val`` split."""
    from pipeline.training import FrameSource

    data = read_params(params, "data")
    return FrameSource(Path(data["index"]), Path(data["root"]), data[split])


def run_settings(values: dict[str, Any]) -> Any:
    """Run settings of a ``train`` mapping."""
    from pipeline.distill import from_mapping
    from pipeline.training import RunSettings

    return from_mapping(RunSettings, values, "train")


def train(
    method: Annotated[str, typer.Option(help="plain, or fd3d to add the distillation losses.")] = "fd3d",
    family: Annotated[str | None, typer.Option(help="Of the profile; its first one by default.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for detector.pth; runs/FAMILY/METHOD by default.")] = None,
    store: Annotated[
        Path | None, typer.Option(help="The expert's cached targets; runs/FAMILY/store by default.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Overrides the apprentice's train.seed.")] = None,
    params: Annotated[Path, typer.Option(help="Reads 'data', 'families' and 'distill'.")] = Path("params.yaml"),
) -> None:
    """Train the apprentice; neither the expert's code path nor its checkpoint is touched."""
    from pipeline.distill import distiller_config
    from pipeline.files import write_atomically
    from pipeline.models.build import load_config
    from pipeline.training import train as run_training

    if method not in METHODS:
        raise FD3DError(f"method '{method}' is unknown; use {' or '.join(METHODS)}")
    name, pair = read_family(params, family)
    section, store = pair["apprentice"], store or Path("runs") / name / "store"
    cfg = load_config(section["config"])
    values = section.get("train", {}) | ({} if seed is None else {"seed": seed})
    settings, out = run_settings(values), out or Path("runs") / name / method
    source, target = frame_source(params, "train"), out / DETECTOR
    if method == "plain":
        facts = run_training(cfg, cfg.model, source, target, settings)
    else:
        model = distiller_config(cfg, store, "fd3d", read_params(params, "distill"))
        facts = run_training(cfg, model, source, target, settings, store, lambda trained: trained.student_state_dict())
    facts["method"] = method
    write_atomically(out / "train.json", lambda file: json.dump(facts, file, indent=1))
    print(f"{target}: {facts}")
