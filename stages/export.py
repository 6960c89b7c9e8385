"""``export``: a detector as an ONNX file, for ONNX Runtime, TensorRT and others."""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from pipeline.data.asked import asked_source
from pipeline.data.index import FrameIndex
from pipeline.data.made_for import check_config
from pipeline.data.source import FrameSource
from pipeline.errors import FD3DError, counted
from pipeline.export.early import calibration_frames, check_export
from pipeline.export.rig import ImageRig, rig_of
from pipeline.files import check_needed
from pipeline.profile import read_profile


def export(
    config: Annotated[Path, typer.Argument(help="Detector config.")],
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of the detector.")],
    out: Annotated[Path, typer.Argument(help="ONNX file to write.")],
    index: Annotated[
        Path | None, typer.Option(help="Frame index that has the rig's cameras; default: the profile's.")
    ] = None,
    height: Annotated[int | None, typer.Option(min=1, help="Rows of the images, in place of an index.")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Columns of the original images, likewise.")] = None,
    int8: Annotated[
        int | None, typer.Option(help="Number of training frames to calibrate int8 on; default: float32.")
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Data root for --int8; default: the profile's.")] = None,
    split: Annotated[str, typer.Option(help="Split of the frames for --int8, as in 'fd3d evaluate'.")] = "train",
    params: Annotated[Path, typer.Option(help="Profile; its section 'data' is used.")] = Path("params.yaml"),
) -> None:
    """Write a detector as one ONNX file of standard operators, history in and out; 'fd3d detect --onnx' runs the file."""
    if (height is None) != (width is None) or (index is not None and height is not None):
        raise FD3DError("give --height and --width together, or --index, or neither for the profile's index")
    if int8 is not None and height is not None:
        raise FD3DError("--int8 calibrates on frames of an index; leave out --height and --width")
    check_needed(config=config, checkpoint=checkpoint, index=index, root=root)
    check_export(out, int8 is not None)
    if height is not None and width is not None:
        rig, frames = ImageRig(((height, width),)), None
    else:  # which sensors the car has is known of the profile's own data and of --root
        source = FrameSource(index or Path(), root or Path(), split)
        if index is None or int8 is not None:
            source = asked_source(read_profile(params).data, split, index, root)
        check_needed(index=source.index)
        rig = rig_of(FrameIndex.load(source.index), source.root if root or index is None else None)
        frames = calibration_frames(source, int8) if int8 is not None else None
    check_config(config, len(rig.sizes) if rig.cameras else None, checkpoint)
    from pipeline.export.write import OPSET, export_detector

    notes, nodes = export_detector(config, checkpoint, out, rig, frames)
    history = "" if notes.bev_shape is None else ", history {}x{} in and out".format(*notes.bev_shape)
    sizes = " and ".join(f"{counted(count, 'camera')} of {h}x{w}" for (h, w), count in Counter(notes.sizes).items())
    graph = f"opset {OPSET}, {counted(nodes.total(), 'node')} of {counted(len(nodes), 'operator')}"
    print(f"{out}: {notes.detector}, {sizes}{history}; {graph}, {out.stat().st_size / 1e6:.1f} MB")
