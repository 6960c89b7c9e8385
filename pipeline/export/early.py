"""Packages, place and calibration frames of an export, looked at before PyTorch is imported."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from pipeline.data.images import check_images
from pipeline.data.index import FrameIndex
from pipeline.data.source import FrameSource
from pipeline.errors import FD3DError
from pipeline.files import check_writable


def check_packages(*names: str) -> None:
    """Refuse to go on without packages of the extra ``onnx``.

    Raises:
        FD3DError: naming the first that is not installed.
    """
    for name in names:
        if find_spec(name) is None:
            raise FD3DError(f"ONNX files need the package {name}; install it with: pip install 'fd3d[onnx]'")


def check_export(out: Path, int8: bool) -> None:
    """Refuse a file that cannot be written, or to go on without the packages of an export.

    Args:
        int8: whether convolutions are quantised, by ONNX Runtime.

    Raises:
        FD3DError: naming package or file.
    """
    check_packages("onnx", "onnxscript", *(("onnxruntime",) if int8 else ()))
    if out.suffix != ".onnx":  # the checkpoint's own name would be overwritten
        raise FD3DError(f"the ONNX file to write is {out}; give a name that ends in .onnx")
    check_writable(out)


@dataclass(frozen=True)
class CalibrationFrames:
    """Frames whose activations give the ranges of int8.

    Attributes:
        source: the frames' split, best the one of training.
        places: numbers of the frames within the split, scenes one after the other in time order.
    """

    source: FrameSource
    places: list[int]


def calibration_frames(source: FrameSource, number: int) -> CalibrationFrames:
    """The first two frames of scenes that are evenly spread over a split: one without history and one with history.

    Args:
        number: number of frames.

    Raises:
        FD3DError: the split is unknown or has fewer such frames, or an image is missing.
    """
    index = FrameIndex.load(source.index, source.root)
    rows = index.select(source.split)
    names = index.arrays["scene_name"][rows].tolist()
    scenes = [[place for place, name in enumerate(names) if name == scene][:2] for scene in dict.fromkeys(names)]
    pairs = [scene for scene in scenes if len(scene) == 2]
    if not pairs:
        raise FD3DError(
            f"split '{source.split}' has no scene of two frames to calibrate int8 on; name another by --split"
        )
    if not 1 <= number <= 2 * len(pairs):
        raise FD3DError(
            f"--int8 {number}: split '{source.split}' has {2 * len(pairs)} frames to calibrate on, two a scene; give 1 to "
            f"{2 * len(pairs)}"
        )
    wanted = (number + 1) // 2
    spread = [pairs[i * len(pairs) // wanted] for i in range(wanted)]
    places = [place for pair in spread for place in pair][:number]
    check_images(index, source.root, [rows[place] for place in places], source.index)
    return CalibrationFrames(source, places)
