"""``complexity``: cost of detectors, in the convention of the paper's GFLOPS column and in full."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.data.made_for import check_config
from pipeline.errors import FD3DError, counted
from pipeline.files import check_needed


def complexity(
    configs: Annotated[list[Path], typer.Argument(help="Detector configs to count.")],
    height: Annotated[int | None, typer.Option(min=1, help="Rows of the original images; default: 900.")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Columns of the original images; default: 1600.")] = None,
    index: Annotated[Path | None, typer.Option(help="Frame index to take cameras from; default: the rig.")] = None,
    token: Annotated[str | None, typer.Option(help="Frame of the index; default: the first.")] = None,
) -> None:
    """Print parameters and multiply-adds by part, for one sample of all cameras and no history."""
    if token is not None and index is None:
        raise FD3DError("--token names a frame of an index; give --index too")
    if index is not None and (height is not None or width is not None):
        raise FD3DError("--index brings its images' size; leave out --height and --width")
    for config in configs:
        check_needed(config=config)
    from pipeline.cost.cameras import frame_cameras, rig_cameras

    cameras = rig_cameras(height or 900, width or 1600) if index is None else frame_cameras(index, token)
    for config in configs:
        check_config(config, len(cameras.names))
    from pipeline.cost.complexity import count, markdown
    from pipeline.models.build import load_config

    found = {str(config): count(load_config(config), cameras) for config in configs}
    print(
        f"Multiply-adds in 1e9, parameters in 1e6; one sample of {counted(len(cameras.intrinsics), 'camera')} of "
        f"{cameras.image_hw[0]}x{cameras.image_hw[1]}, first frame; cameras of {cameras.source}.\n"
    )
    print(markdown(found))
