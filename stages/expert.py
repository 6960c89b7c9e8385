"""Stage ``expert``: take the checkpoint that the profile names, or train one."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.data.asked import check_split
from pipeline.data.made_for import check_config
from pipeline.files import check_needed
from pipeline.profile import read_profile


def expert(
    family: Annotated[str | None, typer.Option(help="Family of detectors; default: the profile's first.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for detector.pth; default: runs/FAMILY/expert.")] = None,
    retrain: Annotated[bool, typer.Option(help="Training even if the profile names a checkpoint.")] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Fresh start where an unfinished training has other settings.")
    ] = False,
    params: Annotated[Path, typer.Option(help="Profile.")] = Path("params.yaml"),
) -> None:
    """Check and take the expert's checkpoint; without one train the expert."""
    profile = read_profile(params)
    pair = profile.family(family)
    checkpoint = None if retrain else pair.expert.checkpoint
    profile.check_checkpoints(pair, trained=checkpoint is None)
    source = profile.data.source("train")
    if checkpoint is None:
        check_needed(index=source.index, root=source.root)
        check_split(source)
    check_config(pair.expert.config, None, checkpoint)
    from pipeline.models.pairs import StudentPlan
    from pipeline.training.expert import take_or_train

    target = out / pair.detector.name if out else pair.detector
    facts = take_or_train(
        pair.expert.config,
        checkpoint,
        pair.expert.train,
        source,
        target,
        StudentPlan.of(pair.apprentice.config, pair.distill),
        student_init=pair.init("apprentice"),
        init=pair.init("expert"),
        boxes=pair.expert.boxes,
        classes=pair.expert.classes,
        validation=profile.data.validation,
        restart=restart,
    )
    print(f"{target}: {facts}")
