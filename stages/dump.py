"""Stage ``dump``: the expert's targets into the store."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import FD3DError
from stages.params import CONFIG, DETECTOR, family_name, read_params


def dump(
    family: Annotated[str | None, typer.Option(help="Of the profile; its first one by default.")] = None,
    config: Annotated[Path | None, typer.Option(help="Expert config; the expert stage's by default.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Expert checkpoint; the expert stage's by default.")] = None,
    random_weights: Annotated[bool, typer.Option(help="Run without a checkpoint; the manifest says so.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder of the store; runs/FAMILY/store by default.")] = None,
    index: Annotated[Path | None, typer.Option(help="Frame index; the profile's by default.")] = None,
    root: Annotated[Path | None, typer.Option(help="Data root; the profile's by default.")] = None,
    split: Annotated[str | None, typer.Option(help="Split to dump; the profile's training split by default.")] = None,
    scene: Annotated[list[str] | None, typer.Option(help="Restrict to a scene; may be repeated.")] = None,
    replace: Annotated[bool, typer.Option(help="Delete a store that another expert, config or index made.")] = False,
    workers: Annotated[int, typer.Option(help="Processes that decode images.")] = 1,
    params: Annotated[Path, typer.Option(help="Reads 'data', 'families', 'focal' and 'dump'.")] = Path("params.yaml"),
) -> None:
    """Run the expert once over every frame; a killed run goes on where it stopped."""
    from pipeline.distill import from_mapping
    from pipeline.dumping import DumpSettings
    from pipeline.dumping import dump as run_dump
    from pipeline.focal import FocalRule
    from pipeline.training import FrameSource
    from store_schema import StoreError

    data = read_params(params, "data")
    name = family_name(params, family)
    target, made_by = out or Path("runs") / name / "store", Path("runs") / name / "expert"
    config = config or made_by / CONFIG
    if checkpoint is None and not random_weights:
        checkpoint = made_by / DETECTOR
    rule = from_mapping(FocalRule, read_params(params, "focal"), "focal")
    settings = from_mapping(DumpSettings, read_params(params, "dump") | {"rule": rule}, "dump")
    source = FrameSource(index or Path(data["index"]), root or Path(data["root"]), split or data["train"])

    def run() -> None:
        made = run_dump(config, None if random_weights else checkpoint, source, target, settings, workers, scene)
        print(f"{target}: {made}")

    try:
        run()
    except StoreError as error:
        if not (replace and "was made with" in str(error)):
            raise
        if not (target / "recipe.json").exists():
            raise FD3DError(f"{target} is no store; it is not deleted") from error
        shutil.rmtree(target)
        run()
