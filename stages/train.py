"""Stage ``apprentice``: train the small detector, plain or with a distiller's losses from the store."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.errors import FD3DError
from stages.params import CONFIG, DETECTOR, read_family, read_params, read_yaml

PLAIN = "plain"
"""The method that distils nothing."""
DISTILL_CONFIGS = Path(__file__).parents[1] / "configs" / "distill"
"""A file of settings per method other than fd3d; without one a method's defaults hold."""


def frame_source(params: Path, split: str) -> Any:
    """Frames of the profile's ``train`` or ``val`` split."""
    from pipeline.data.frames import FrameSource

    data = read_params(params, "data")
    return FrameSource(Path(data["index"]), Path(data["root"]), data[split])


def run_settings(values: dict[str, Any]) -> Any:
    """Run settings of a ``train`` mapping."""
    from pipeline.settings import from_mapping
    from pipeline.training.settings import RunSettings

    return from_mapping(RunSettings, values, "train")


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """``base`` with the values of ``over``, mapping by mapping."""
    both = {
        name: merged(base[name], value)
        for name, value in over.items()
        if isinstance(value, dict) and isinstance(base.get(name), dict)
    }
    return base | over | both


def method_settings(params: Path, family: str, method: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A distiller's settings for a family, and which of the apprentice's modules start from the expert's weights.

    Those of fd3d are the section ``distill``, overridden by ``families.FAMILY.distill``; those of any other method
    ``configs/distill/METHOD.yaml``, overridden by ``methods.METHOD``. The modules are listed there as ``inherit``, of
    ``plain`` too.

    Raises:
        FD3DError: a section is missing, or ``methods`` names one that does not exist.
    """
    from pipeline.distill.methods import method_names

    overrides = read_params(params, "methods", optional=True)
    others = [PLAIN, *(name for name in method_names() if name != "fd3d")]
    unknown = [name for name in overrides if name not in others]
    if unknown:
        raise FD3DError(
            f"{params}: methods.{unknown[0]} is no method; there are {', '.join(others)}, and 'distill' is fd3d's"
        )
    if method == "fd3d":
        own = read_family(params, family)[1].get("distill") or {}
        values = merged(read_params(params, "distill"), own)
    else:
        file = DISTILL_CONFIGS / f"{method}.yaml"
        values = merged((read_yaml(file) or {}) if file.is_file() else {}, overrides.get(method) or {})
    modules = tuple(values.pop("inherit", None) or ())
    if method == PLAIN and values:
        raise FD3DError(f"{params}: methods.{PLAIN}.{next(iter(values))} is no setting; there is inherit")
    return values, modules


def train(
    method: Annotated[str, typer.Option(help="plain, or a distiller: fd3d or another of docs/distillers.md.")] = "fd3d",
    family: Annotated[str | None, typer.Option(help="Of the profile; its first one by default.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for detector.pth; runs/FAMILY/METHOD by default.")] = None,
    store: Annotated[
        Path | None, typer.Option(help="The expert's cached targets; runs/FAMILY/store by default.")
    ] = None,
    expert: Annotated[
        Path | None,
        typer.Option(help="Checkpoint of an expert that is inherited from or online; runs/FAMILY/expert's by default."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Overrides the apprentice's train.seed.")] = None,
    params: Annotated[Path, typer.Option(help="Reads 'data', 'families', 'distill' and 'methods'.")] = Path(
        "params.yaml"
    ),
) -> None:
    """Train the apprentice; unless the expert is set to run online, neither its code path nor its checkpoint is touched."""
    from pipeline.distill.apprentice import train_apprentice
    from pipeline.distill.methods import load_method
    from pipeline.files import write_atomically
    from pipeline.models.build import load_config
    from pipeline.training.run import train as run_training
    from pipeline.training.settings import Inheritance

    if method != PLAIN:
        load_method(method)
    name, pair = read_family(params, family)
    section, store = pair["apprentice"], store or Path("runs") / name / "store"
    cfg = load_config(section["config"])
    values = section.get("train", {}) | ({} if seed is None else {"seed": seed})
    settings, out = run_settings(values), out or Path("runs") / name / method
    source, target = frame_source(params, "train"), out / DETECTOR
    values, modules = method_settings(params, name, method)
    expert = expert or Path("runs") / name / "expert" / DETECTOR
    inheritance = Inheritance(expert, modules) if modules else None
    if method == PLAIN:
        facts = run_training(cfg, cfg.model, source, target, settings, inheritance=inheritance)
    else:
        made_by = (expert.with_name(CONFIG), expert)
        facts = train_apprentice(cfg, method, values, source, store, target, settings, made_by, inheritance)
    facts["method"] = method
    write_atomically(out / "train.json", lambda file: json.dump(facts, file, indent=1))
    print(f"{target}: {facts}")
