"""An exported detector in ONNX Runtime, one frame after the other."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.data.pixels import levels
from pipeline.errors import FD3DError
from pipeline.export.early import check_packages
from pipeline.export.graph import INPUTS
from pipeline.export.notes import Notes
from pipeline.files import check_needed

_HISTORY = INPUTS[3]


class ExportedDetector:
    """Session of a file of ``fd3d export``, with the BEV map of the last frame.

    Args:
        path: the file.

    Attributes:
        notes: what the file says about itself.

    Raises:
        FD3DError: ONNX Runtime is missing, or the file is missing, was not made by ``fd3d export`` or has odd notes.
    """

    def __init__(self, path: Path) -> None:
        check_packages("onnxruntime")
        import onnxruntime

        check_needed(exported=path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors
        present = onnxruntime.get_available_providers()
        providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in present]
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=providers)
        except Exception as error:  # ONNX Runtime's errors have no base of their own
            told = str(error).splitlines()[0][:200]
            raise FD3DError(f"{path} cannot be run by ONNX Runtime ({told}); give a file of 'fd3d export'") from error
        self.notes = Notes.of(self._session.get_modelmeta().custom_metadata_map, path)
        self._check_history(path)
        self._history: np.ndarray | None = None

    def _check_history(self, path: Path) -> None:
        """Refuse notes on the BEV map that are not of the graph."""
        shapes = {given.name: tuple(given.shape) for given in self._session.get_inputs()}
        own, noted = shapes.get(_HISTORY), self.notes.bev_shape
        if own != (None if noted is None else (1, *noted)):
            takes = "takes no BEV map" if own is None else f"takes one of {own}"
            raise FD3DError(f"{path} has the note bev_shape {noted}, but its graph {takes}; export the detector again")

    def __call__(
        self, images: np.ndarray, lidar2img: np.ndarray, ego_motion: np.ndarray, has_history: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Detect on the next frame.

        Args:
            images: (V, 3, H, W) float32 as of :meth:`DetectorGraph.forward <pipeline.export.graph.DetectorGraph.forward>`.
            lidar2img: (V, 4, 4).
            ego_motion: (18,) since the frame before.
            has_history: whether the frame follows the last one.

        Returns:
            boxes (n, 9) in the LiDAR frame with centres of gravity, scores (n,) falling, labels (n,).
        """
        found = self._session.run(None, self.inputs(images, lidar2img, ego_motion, has_history))
        boxes, scores, labels, kept = (array[0] for array in found[:4])
        if self.notes.bev_shape is not None:
            self._history = found[4]
        kept = kept | ~np.isfinite(boxes[:, :3]).all(1)  # for the caller to see, as PyTorch's
        return boxes[kept], scores[kept], labels[kept]

    def inputs(
        self, images: np.ndarray, lidar2img: np.ndarray, ego_motion: np.ndarray, has_history: bool
    ) -> dict[str, np.ndarray]:
        """Inputs of the graph by name, with the last frame's BEV map as history; arguments as of :meth:`__call__`."""
        inputs = [images[None], lidar2img[None].astype(np.float32)]
        shape = self.notes.bev_shape
        if shape is not None:
            history = self._history if has_history else None
            inputs += [
                ego_motion[None].astype(np.float32),
                np.zeros((1, *shape), np.float32) if history is None else history,
                np.array([history is not None]),
            ]
        return dict(zip(INPUTS, inputs, strict=False))


def graph_arguments(batch: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    """Arguments of :class:`ExportedDetector` for a collated batch of one frame."""
    frame = batch["data_samples"][0].frames[-1]
    return levels(batch["inputs"]["img"][0][-1]).numpy(), frame["lidar2img"], frame["can_bus"], frame["has_history"]
