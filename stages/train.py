"""Stage ``apprentice``: train the student, plain or with a distiller's losses from the store."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.data.asked import check_split
from pipeline.errors import FD3DError
from pipeline.files import check_needed
from pipeline.profile import DETECTOR, PLAIN, Family, read_profile


def train(
    method: Annotated[str, typer.Option(help="Method: plain, fd3d or another of docs/distillers.md.")] = "fd3d",
    family: Annotated[str | None, typer.Option(help="Family to train; default: the profile's first.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for detector.pth; default: runs/FAMILY/METHOD.")] = None,
    store: Annotated[Path | None, typer.Option(help="Store of the expert; default: runs/FAMILY/store.")] = None,
    expert: Annotated[Path | None, typer.Option(help="Checkpoint of the expert; default: the expert stage's.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the training; default: the profile's.")] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Fresh start where an unfinished training has other settings.")
    ] = False,
    params: Annotated[Path, typer.Option(help="Profile.")] = Path("params.yaml"),
) -> None:
    """Train the student; unless the expert is set to run online, neither the expert's code nor its checkpoint is touched."""
    profile = read_profile(params)
    pair = profile.family(family)
    settings, source = profile.method(method, pair), profile.data.source("train")
    inherited = expert or (None if method == PLAIN else pair.detector)
    pair.init("apprentice").check()
    check_needed(index=source.index, root=source.root, expert=inherited if settings.inherit else None)
    check_split(source)
    run = pair.apprentice.train if seed is None else replace(pair.apprentice.train, seed=seed)
    out = (out or pair.folder / method) / DETECTOR
    shared = {"source": source, "run": run, "out": out, "init": pair.init("apprentice"), "restart": restart}
    shared["validation"] = profile.data.validation
    distilled = (method, settings, store or pair.store, expert or pair.detector)
    facts = _plain(pair, settings, expert, shared) if method == PLAIN else _distilled(pair, *distilled, shared)
    print(f"{out}: {facts}")


def _plain(pair: Family, settings: Any, expert: Path | None, shared: Any) -> dict[str, Any]:
    if settings.inherit and expert is None:
        # 'dvc repro' would not know that a plain student depends on the expert
        raise FD3DError(f"{settings.section}.inherit starts a plain student from an expert; name it by --expert")
    from pipeline.training.plain import train_plain

    return train_plain(pair.apprentice.config, expert=expert, inherit=settings.inherit, **shared)


def _distilled(pair: Family, method: str, settings: Any, store: Path, expert: Path, shared: Any) -> dict[str, Any]:
    from store_schema import StoreReader

    StoreReader(store)
    from pipeline.distill.apprentice import train_apprentice

    return train_apprentice(pair.apprentice.config, method, settings, store=store, expert=expert, **shared)
