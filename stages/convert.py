"""``convert``: an official checkpoint rewritten in this project's conventions."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.data.conversion import check_conversion
from pipeline.data.made_for import check_config
from pipeline.files import check_needed


def convert(
    official: Annotated[Path, typer.Argument(help="Checkpoint of BEVFormer, DETR3D or FD3D's release.")],
    out: Annotated[Path, typer.Argument(help="Checkpoint to write.")],
    config: Annotated[Path, typer.Option(help="Config of the same detector, below configs/.")],
    boxes: Annotated[
        str,
        typer.Option(help="Box convention of OFFICIAL: old (mmdet3d before 1.0), new, or auto, by the file's notes."),
    ] = "auto",
    classes: Annotated[
        str | None, typer.Option(help="Class names in OFFICIAL's order, comma-separated; default: by the file's notes.")
    ] = None,
    shift_current: Annotated[
        str,
        typer.Option(
            help="Whether the code that trained a BEVFormer shifted the current frame's reference points: true (before 27 July "
            "2023, FD3D's release), false, or auto, by the file's notes."
        ),
    ] = "auto",
) -> None:
    """Check an official checkpoint against a config and write it in this project's conventions; no code in it is run."""
    check_needed(checkpoint=official, config=config)
    names = None if classes is None else [name.strip() for name in classes.split(",")]
    check_conversion(official, out, boxes, names, shift_current)
    check_config(config, None, official)
    from pipeline.models.checkpoints import convert_checkpoint

    made = convert_checkpoint(official, out, config, boxes, names, shift_current)
    print(f"{out}: {made}")
