"""A detector written as an ONNX file."""

import contextlib
import io
import logging
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import FD3DError, counted
from pipeline.export.early import CalibrationFrames, check_export
from pipeline.export.graph import INPUTS, OUTPUTS, DetectorGraph, detector_views
from pipeline.export.notes import KEY, Notes
from pipeline.export.quantise import quantised, read_once
from pipeline.export.rig import ImageRig
from pipeline.export.standard import standard_operators
from pipeline.files import file_sha256, write_atomically
from pipeline.models.build import load_config
from pipeline.models.detector import MultiCameraDetector
from pipeline.models.load import load_detector
from pipeline.models.pairs import check_rig, warn_of_sizes
from pipeline.models.reading import read_checkpoint

OPSET = 18
"""Version of ONNX's operators: TensorRT reads it since 8.6."""


def export_detector(
    config: Path, checkpoint: Path, out: Path, rig: ImageRig, int8: CalibrationFrames | None = None
) -> tuple[Notes, Counter[str]]:
    """Write a detector as one ONNX file, with inputs and outputs as of :class:`~pipeline.export.graph.DetectorGraph`.

    Every shape is fixed, the batch at 1: one car's frames, one after the other. Operators are those of ONNX's own domain.

    Args:
        rig: the cameras' images; names of the cameras and frame of reference are the checkpoint's where these are not given.
        int8: frames to calibrate int8 convolutions on; None for float32.

    Returns:
        the file's notes, and the number of nodes by operator.

    Raises:
        FD3DError: packages of the extra ``onnx`` are missing, bad input, a detector that is none of this project's or is made
            worse on purpose, another number of cameras than the detector's, or a place that cannot be
            written.
    """
    check_export(out, int8 is not None)
    import onnx

    cfg = load_config(config)
    if "corruption" in cfg:
        raise FD3DError(
            f"config {config} makes its detector worse on purpose; export the detector without 'corruption'"
        )
    if rig.cameras and rig.reference:  # before weights are loaded that would not fit another number of cameras
        check_rig(cfg, checkpoint, rig.cameras, rig.reference, rig.folder, rig.turn)
        warn_of_sizes(checkpoint, rig.sizes, rig.cameras)
    model = load_detector(cfg, checkpoint).cpu()
    if not isinstance(model, MultiCameraDetector):
        raise FD3DError(
            f"{type(model).__name__} of {config} cannot be exported; give a BEVFormer or DETR3D of this project"
        )
    if int8 is not None:
        read_once(cfg, int8)
    views = detector_views(model)
    if len(rig.sizes) not in (1, views) or len(rig.cameras) not in (0, views):
        raise FD3DError(
            f"the rig has {counted(len(rig.sizes), 'camera')}, the detector of {checkpoint} has {views}; train one for this rig, or name "
            "another index"
        )
    whole = rig.of_training(read_checkpoint(checkpoint).training, views)
    if whole.cameras and not rig.cameras:  # of those of an index it was told above
        warn_of_sizes(checkpoint, whole.sizes, whole.cameras)
    graph = DetectorGraph(model).eval()
    notes = Notes(
        detector=type(model).__name__,
        sizes=whole.sizes,
        cameras=whole.cameras,
        reference=whole.reference,
        scale=cfg.image.scale,
        to_rgb=cfg.image.to_rgb,
        pc_range=tuple(cfg.pc_range),
        bev_shape=graph.bev_shape if graph.streams else None,
        checkpoint_sha256=file_sha256(checkpoint),
        lidar_turn=whole.turn,
    )
    proto = _exported(DetectorGraph(model, notes.view_hw).eval(), _example(notes))
    onnx.helper.set_model_props(proto, {KEY: notes.dumped()})
    if int8 is not None:
        proto = quantised(proto, cfg, int8)
    write_atomically(out, lambda file: file.write(proto.SerializeToString()), binary=True)
    return notes, Counter(node.op_type for node in proto.graph.node)


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
                optimize=False,
            )
            assert program is not None
            _simplify(program.model)
    finally:
        logging.disable(level)
    return program.model_proto


def _simplify(model: Any) -> None:
    """Leave out nodes that compute constants or nothing; folding first leaves the search for patterns a third of the nodes."""
    from onnxscript import optimizer

    optimizer.fold_constants(model)
    optimizer.remove_unused_nodes(model)
    optimizer.optimize_ir(model, num_iterations=1)
