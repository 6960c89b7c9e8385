"""Convolutions of an exported detector in int8, by ONNX Runtime's static quantisation."""

import logging
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mmengine.config import Config

from pipeline.data.frames import frame_batches
from pipeline.data.index import FrameIndex
from pipeline.data.source import FrameSource
from pipeline.errors import FD3DError
from pipeline.export.notes import KEY
from pipeline.export.runtime import ExportedDetector, graph_arguments
from pipeline.files import write_atomically
from pipeline.models.build import load_config

QUANTISED = ("Conv",)
"""Operators in int8: the backbone's and the neck's. Attention and heads, which compute metres, stay in float32."""


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
        FD3DError: the split is unknown or has fewer such frames.
    """
    index = FrameIndex.load(source.index, source.root)
    names = index.arrays["scene_name"][index.select(source.split)].tolist()
    scenes = [[place for place, name in enumerate(names) if name == scene][:2] for scene in dict.fromkeys(names)]
    pairs = [scene for scene in scenes if len(scene) == 2]
    most = 2 * len(pairs)
    if not 1 <= number <= most:
        raise FD3DError(
            f"--int8 {number}: split '{source.split}' has {most} frames to calibrate on, two a scene; give 1 to {most}"
        )
    wanted = (number + 1) // 2
    spread = [pairs[i * len(pairs) // wanted] for i in range(wanted)]
    return CalibrationFrames(source, [place for pair in spread for place in pair][:number])


def quantise(path: Path, config: Path, frames: CalibrationFrames) -> Counter[str]:
    """Put the convolutions of an exported file into int8, in place.

    Weights are signed with a scale for each channel, activations are unsigned with the range that they have on the
    calibration frames. ``QuantizeLinear`` and ``DequantizeLinear`` say so, operators of ONNX's own domain.

    Args:
        path: file of :func:`~pipeline.export.write.export_detector`.
        config: the detector's config.

    Returns:
        the number of nodes by operator.

    Raises:
        FD3DError: a file is missing or does not fit.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    exported = ExportedDetector(path)
    inputs = _streamed(exported, load_config(config), frames)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(inputs, None)

    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "int8.onnx"
            quantize_static(
                path,
                made,
                Reader(),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(QUANTISED),
                per_channel=True,
                weight_type=QuantType.QInt8,
                activation_type=QuantType.QUInt8,
            )
            proto = onnx.load(made)
    finally:
        logging.disable(level)
    del proto.metadata_props[:]
    onnx.helper.set_model_props(proto, {KEY: exported.notes.dumped()})
    write_atomically(path, lambda file: file.write(proto.SerializeToString()), binary=True)
    return Counter(node.op_type for node in proto.graph.node)


def _streamed(detector: ExportedDetector, cfg: Config, frames: CalibrationFrames) -> Iterator[dict[str, np.ndarray]]:
    """Inputs of the graph on frames in time order; the float32 detector itself gives the history."""
    for batch in frame_batches(cfg, frames.source, frames.places, workers=0):
        given = graph_arguments(batch)
        yield detector.inputs(*given)
        detector(*given)
