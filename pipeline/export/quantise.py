"""Convolutions of an exported detector in int8, by ONNX Runtime's static quantisation."""

import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config

from pipeline.data.frames import frame_batches
from pipeline.data.images import check_images
from pipeline.data.index import FrameIndex
from pipeline.data.source import FrameSource
from pipeline.errors import FD3DError
from pipeline.export.notes import KEY
from pipeline.export.runtime import ExportedDetector, graph_arguments

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

    def check(self, cfg: Config) -> None:
        """Read every frame once, so that a damaged image is named before the export and not after it.

        Raises:
            FD3DError: an image cannot be read.
        """
        for _ in frame_batches(cfg, self.source, self.places, workers=0):
            pass


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


def quantised(proto: Any, cfg: Config, frames: CalibrationFrames) -> Any:
    """An exported detector with its convolutions in int8.

    Weights are signed with a scale for each channel, activations are unsigned with the range that they have on the
    calibration frames. ``QuantizeLinear`` and ``DequantizeLinear`` say so, operators of ONNX's own domain.

    Args:
        proto: ONNX model of :func:`~pipeline.export.write.export_detector`.
        cfg: the detector's config.

    Returns:
        another ONNX model, with the same notes.

    Raises:
        FD3DError: an image cannot be read.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    level = logging.root.manager.disable
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        onnx.save(proto, given)
        exported = ExportedDetector(given)
        inputs = _streamed(exported, cfg, frames)

        class Reader(CalibrationDataReader):  # type: ignore[misc]
            def get_next(self) -> dict[str, np.ndarray] | None:
                return next(inputs, None)

        logging.disable(logging.WARNING)
        try:
            quantize_static(
                given,
                made,
                Reader(),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(QUANTISED),
                per_channel=True,
                weight_type=QuantType.QInt8,
                activation_type=QuantType.QUInt8,
            )
        finally:
            logging.disable(level)
        result = onnx.load(made)
    del result.metadata_props[:]
    onnx.helper.set_model_props(result, {KEY: exported.notes.dumped()})
    return result


def _streamed(detector: ExportedDetector, cfg: Config, frames: CalibrationFrames) -> Iterator[dict[str, np.ndarray]]:
    """Inputs of the graph on frames in time order; the float32 detector itself gives the history."""
    for batch in frame_batches(cfg, frames.source, frames.places, workers=0):
        given = graph_arguments(batch)
        yield detector.inputs(*given)
        detector(*given)
