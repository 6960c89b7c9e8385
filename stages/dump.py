"""Stage ``dump``: the expert's targets into the store, and how much of the annotated boxes they cover."""

import json
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
    out: Annotated[str | None, typer.Option(help="Folder or URL of the store; runs/FAMILY/store by default.")] = None,
    index: Annotated[Path | None, typer.Option(help="Frame index; the profile's by default.")] = None,
    root: Annotated[Path | None, typer.Option(help="Data root; the profile's by default.")] = None,
    split: Annotated[str | None, typer.Option(help="Split to dump; the profile's training split by default.")] = None,
    scene: Annotated[list[str] | None, typer.Option(help="Restrict to a scene; may be repeated.")] = None,
    replace: Annotated[bool, typer.Option(help="Delete a store that another expert, config or index made.")] = False,
    workers: Annotated[int, typer.Option(help="Processes that decode images; on a cluster threads per worker.")] = 1,
    cluster_workers: Annotated[
        int | None, typer.Option(help="Processes that run the expert; see docs/dump.md.")
    ] = None,
    address: Annotated[str | None, typer.Option(help="Dask scheduler whose workers run the expert.")] = None,
    metrics: Annotated[
        Path | None, typer.Option(help="Coverage as JSON, its curve beside it; runs/FAMILY/dump.json without --out.")
    ] = None,
    params: Annotated[Path, typer.Option(help="Reads 'data', 'families', 'focal' and 'dump'.")] = Path("params.yaml"),
) -> None:
    """Run the expert once over every frame; a killed run goes on where it stopped."""
    from pipeline.data.frames import FrameSource
    from pipeline.dumping.coverage import summary, write_curve
    from pipeline.dumping.dump import dump as run_dump
    from pipeline.dumping.settings import ClusterSettings, DumpSettings
    from pipeline.files import write_atomically
    from pipeline.focal.rule import FocalRule
    from pipeline.settings import from_mapping
    from store_schema import StoreError, open_storage
    from store_schema.manifest import RECIPE

    data = read_params(params, "data")
    name = family_name(params, family)
    made_by = Path("runs") / name / "expert"
    target = open_storage(out or Path("runs") / name / "store")
    config = config or made_by / CONFIG
    if checkpoint is None and not random_weights:
        checkpoint = made_by / DETECTOR
    rule = from_mapping(FocalRule, read_params(params, "focal"), "focal")
    section = read_params(params, "dump")
    given = {"workers": cluster_workers, "address": address}
    cluster = from_mapping(
        ClusterSettings,
        (section.pop("cluster", None) or {}) | {key: value for key, value in given.items() if value is not None},
        "dump.cluster",
    )
    settings = from_mapping(DumpSettings, section | {"rule": rule}, "dump")
    source = FrameSource(index or Path(data["index"]), root or Path(data["root"]), split or data["train"])

    def run() -> None:
        weights = None if random_weights else checkpoint
        made = run_dump(config, weights, source, target, settings, workers, scene, cluster)
        coverage = summary(made["coverage"])
        print(f"{target}: {made['frames']} frames")
        for part, shares in coverage.items():
            print(f"{part}: {shares['cells']:.1%} of all cells, holding {shares['boxes']:.1%} of the annotated boxes")
        path = metrics or (Path("runs") / name / "dump.json" if out is None else None)
        if path is not None:
            text = json.dumps({"frames": made["frames"], "coverage": coverage}, indent=1)
            write_atomically(path, lambda file: file.write(text + "\n"))
            write_curve(path.with_name("coverage.csv"), made["coverage"])

    try:
        run()
    except StoreError as error:
        if not (replace and "was made with" in str(error)):
            raise
        if not target.exists(RECIPE):
            raise FD3DError(f"{target} is no store; it is not deleted") from error
        target.clear()
        run()
