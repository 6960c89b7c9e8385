"""Stage ``dump``: the expert's targets into the store, and how much of the annotated boxes they cover."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.data.source import FrameSource
from pipeline.dumping.early import frames_to_dump, place_of
from pipeline.errors import counted
from pipeline.files import check_needed
from pipeline.profile import CONFIG, read_profile


def dump(
    family: Annotated[str | None, typer.Option(help="Family of detectors; default: the profile's first.")] = None,
    config: Annotated[Path | None, typer.Option(help="Expert config; default: the expert stage's.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Expert checkpoint; default: the expert stage's.")] = None,
    random_weights: Annotated[bool, typer.Option(help="Random weights, for a try of data and model.")] = False,
    out: Annotated[str | None, typer.Option(help="Folder or URL of the store; default: runs/FAMILY/store.")] = None,
    index: Annotated[Path | None, typer.Option(help="Frame index; default: the profile's.")] = None,
    root: Annotated[Path | None, typer.Option(help="Data root; default: the profile's.")] = None,
    split: Annotated[str | None, typer.Option(help="Split to dump; default: the profile's training split.")] = None,
    scene: Annotated[list[str] | None, typer.Option(help="Scene to dump, repeatable; default: all.")] = None,
    replace: Annotated[bool, typer.Option(help="Deletion of a store of another expert, config or index.")] = False,
    allow_versions: Annotated[bool, typer.Option(help="Mixture of library versions in one store, all listed.")] = False,
    workers: Annotated[int, typer.Option(help="Processes that decode images; on a cluster threads per worker.")] = 1,
    cluster_workers: Annotated[int | None, typer.Option(help="Number of workers; default: the profile's.")] = None,
    address: Annotated[str | None, typer.Option(help="Address of a dask scheduler to run on.")] = None,
    metrics: Annotated[
        Path | None, typer.Option(help="JSON file for the coverage; default without --out: runs/FAMILY/dump.json.")
    ] = None,
    params: Annotated[Path, typer.Option(help="Profile.")] = Path("params.yaml"),
) -> None:
    """Run the expert once over every frame; a killed run goes on where it stopped."""
    profile = read_profile(params)
    pair, data = profile.family(family), profile.data
    source = FrameSource(index or data.index, root or data.root, split or data.train)
    cluster = profile.cluster.with_given(cluster_workers, address)
    weights, made_by = None if random_weights else checkpoint or pair.detector, pair.detector.with_name(CONFIG)
    check_needed(config=config, beside=None if config else made_by, index=source.index)
    if cluster.address is None:  # workers at an address may have the only copies
        check_needed(root=source.root, checkpoint=weights)
    path = metrics or (pair.folder / "dump.json" if out is None else None)
    frames_to_dump(source, scene, profile.dump, config or made_by, path, weights)
    target = place_of(out or pair.store)
    from pipeline.dumping.coverage import lines, write_coverage
    from pipeline.dumping.dump import dump as run_dump
    from pipeline.models.pairs import StudentPlan, planned_student

    if config is None and weights == pair.detector and weights.is_file():  # the student's training starts hours later
        stored = profile.dump.rule.of_store(profile.dump.layout)
        planned_student(StudentPlan.of(pair.apprentice.config, pair.distill, stored), made_by, weights)
    settings = profile.dump.for_trial() if random_weights else profile.dump
    run = (settings, workers, scene, cluster, replace, allow_versions)
    made = run_dump(config or made_by, weights, source, target, *run)
    print("\n".join([f"{target}: {counted(made['frames'], 'frame')}", *lines(made["coverage"])]))
    if path is not None:
        write_coverage(path, made["frames"], made["coverage"])
