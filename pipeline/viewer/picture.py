"""A frame of a store as one picture: cameras with the expert's boxes, BEV energy, focal cells."""

from pathlib import Path

import cv2
import numpy as np

from pipeline.data.index import FrameIndex
from pipeline.errors import FD3DError
from pipeline.report.figures import beside, bev_figure, camera_sheet, stored_energy
from store_schema import StoreReader


def draw_frame(reader: StoreReader, token: str, index: FrameIndex, root: Path, out: Path, min_score: float) -> None:
    """Draw a frame to the image file ``out``, with queries from ``min_score`` on.

    Raises:
        FD3DError: the file's suffix is no image's, or it cannot be written.
    """
    if not cv2.haveImageWriter(out.name):
        raise FD3DError(f"{out} has no suffix of an image file; give a name that ends in .png or .jpg")
    frame = index[index.row(token)]
    stored = reader.read(token)
    boxes = stored["query/boxes"][stored["query/score"] >= min_score]
    truth = np.nan_to_num(frame.boxes)
    sheet = camera_sheet(root, frame, [(truth, (80, 220, 80)), (boxes, (255, 80, 60))])
    energy = stored_energy(stored, reader.schema.bev[:2]) if reader.schema.bev else None
    focal = None if energy is None else np.isfinite(energy)
    extent = reader.manifest["coordinates"]["pc_range"][3]
    layers = {"annotated": (truth, "limegreen"), "expert": (boxes, "tomato")}
    drawing = beside(sheet, bev_figure(layers, extent, frame.lidar2ego, energy, focal))
    out.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(out), drawing[..., ::-1]):
        raise FD3DError(f"{out} cannot be written; give a .png path in a writable folder")
