"""Convolutions of an exported detector in int8, by ONNX Runtime's static quantisation."""

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config

from pipeline.data.frames import frame_batches
from pipeline.export.early import CalibrationFrames
from pipeline.export.notes import KEY
from pipeline.export.runtime import ExportedDetector, graph_arguments

QUANTISED = ("Conv",)
"""Operators in int8: the backbone's and the neck's. Attention and heads, which compute metres, stay in float32."""


def read_once(cfg: Config, frames: CalibrationFrames) -> None:
    """Read every frame once, so that a damaged image is named before the export and not after it.

    Raises:
        FD3DError: an image cannot be read.
    """
    for _ in frame_batches(cfg, frames.source, frames.places, workers=0):
        pass


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
