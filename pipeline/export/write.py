"""A detector written as an ONNX file."""

import contextlib
import io
import logging
import warnings
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from pipeline.data.index import FrameIndex
from pipeline.errors import FD3DError
from pipeline.export.graph import INPUTS, OUTPUTS, DetectorGraph
from pipeline.export.notes import KEY, Notes
from pipeline.export.standard import standard_operators
from pipeline.files import check_writable, write_atomically
from pipeline.models.build import file_sha256, load_config
from pipeline.models.detector import MultiCameraDetector
from pipeline.models.load import load_detector

OPSET = 18
"""Version of ONNX's operators: TensorRT reads it since 8.6."""


def export_detector(
    config: Path, checkpoint: Path, out: Path, image_hw: tuple[int, int], views: int | None = None
) -> tuple[Notes, Counter[str]]:
    """Write a detector as one ONNX file, with inputs and outputs as of :class:`~pipeline.export.graph.DetectorGraph`.

    Every shape is fixed, the batch at 1: one car's frames, one after the other. Operators are those of ONNX's own domain.

    Args:
        image_hw: rows and columns of the cameras' images before they are resized by the config's ``image.scale``.
        views: number of the rig's cameras; None for the detector's.

    Returns:
        the file's notes, and the number of nodes by operator.

    Raises:
        FD3DError: packages of the extra ``onnx`` are missing, bad input, a detector that is none of this project's or is made
            worse on purpose, another number of cameras than the detector's, or a place that cannot be written.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise FD3DError(f"export needs the package {error.name}; install it with: pip install 'fd3d[onnx]'") from error
    check_writable(out)
    cfg = load_config(config)
    if "corruption" in cfg:
        raise FD3DError(
            f"config {config} makes its detector worse on purpose; export the detector without 'corruption'"
        )
    model = load_detector(cfg, checkpoint).cpu()
    if not isinstance(model, MultiCameraDetector):
        raise FD3DError(
            f"{type(model).__name__} of {config} cannot be exported; give a BEVFormer or DETR3D of this project"
        )
    graph = DetectorGraph(model).eval()
    if views not in (None, graph.views):
        raise FD3DError(
            f"the rig has {views} cameras, the detector of {checkpoint} has {graph.views}; train one for this rig, or name another index"
        )
    notes = Notes(
        detector=type(model).__name__,
        views=graph.views,
        image_hw=image_hw,
        scale=cfg.image.scale,
        to_rgb=cfg.image.to_rgb,
        pc_range=tuple(cfg.pc_range),
        bev_shape=graph.bev_shape if graph.streams else None,
        checkpoint_sha256=file_sha256(checkpoint),
    )
    proto = _exported(graph, _example(notes))
    onnx.helper.set_model_props(proto, {KEY: notes.dumped()})
    write_atomically(out, lambda file: file.write(proto.SerializeToString()), binary=True)
    return notes, Counter(node.op_type for node in proto.graph.node)


def rig_of(index: FrameIndex) -> tuple[tuple[int, int], int]:
    """Rows and columns of a data set's images, and the number of its cameras.

    Raises:
        FD3DError: the images differ in size, for which a graph has no mask.
    """
    sizes = index.arrays["image_sizes"].reshape(-1, 2)
    if (sizes != sizes[0]).any():
        raise FD3DError(
            "the images of the index differ in size, an exported graph takes one; give --height and --width"
        )
    return (int(sizes[0, 0]), int(sizes[0, 1])), len(index.cameras)


def _example(notes: Notes) -> tuple[Tensor, ...]:
    """Inputs of the graph's shapes; their values count for nothing."""
    frame = (torch.zeros(1, notes.views, 3, *notes.resized_hw), torch.eye(4).repeat(1, notes.views, 1, 1))
    if notes.bev_shape is None:
        return frame
    return (*frame, torch.zeros(1, 18), torch.zeros(1, *notes.bev_shape), torch.ones(1, dtype=torch.bool))


def _exported(graph: DetectorGraph, example: tuple[Tensor, ...]):  # type: ignore[no-untyped-def]
    """ONNX model of a graph, without what torch has to say about its making."""
    outputs = OUTPUTS if graph.streams else OUTPUTS[:-1]
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            torch.no_grad(),
            standard_operators(),
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            names = list(INPUTS[: len(example)])
            program = torch.onnx.export(
                graph,
                example,
                input_names=names,
                output_names=list(outputs),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    finally:
        logging.disable(level)
    assert program is not None
    return program.model_proto
