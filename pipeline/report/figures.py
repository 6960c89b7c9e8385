"""Pictures of frames: cameras and bird's-eye view with boxes, expert features and focal areas."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle

from pipeline.data import CAMERAS
from pipeline.data.geometry import lidar2img
from pipeline.data.index import Frame
from pipeline.data.pixels import AS_RECORDED
from pipeline.errors import FD3DError
from pipeline.report.directions import Directions

matplotlib.use("Agg")

Boxes = np.ndarray
_EDGES = [(a, b) for a in range(8) for b in range(a + 1, 8) if bin(a ^ b).count("1") == 1]
_NEAR = 0.1  # metres


def camera_grid(cameras: Sequence[str]) -> tuple[int, ...]:
    """Slots of cameras as drawn, in rows of three: of nuScenes' front left, front, front right; back left, back, back right."""
    return (2, 0, 1, 4, 3, 5) if tuple(cameras) == CAMERAS else tuple(range(len(cameras)))


def corners(boxes: Boxes) -> np.ndarray:
    """Corners (n, 8, 3) of boxes (n, 9); bit 2 of a corner's number is forward, bit 1 left, bit 0 up."""
    signs = np.array([[(i >> 2) & 1, (i >> 1) & 1, i & 1] for i in range(8)]) - 0.5
    local = signs * boxes[:, None, 3:6]
    c, s = np.cos(boxes[:, 6, None]), np.sin(boxes[:, 6, None])
    turned = np.stack([c * local[..., 0] - s * local[..., 1], s * local[..., 0] + c * local[..., 1], local[..., 2]], -1)
    return turned + boxes[:, None, :3]


def draw_camera(image: np.ndarray, boxes: Boxes, projection: np.ndarray, color: tuple[int, int, int]) -> None:
    """Draw projected boxes (LiDAR frame) into an RGB image in place; projection (4, 4)."""
    thickness = max(1, image.shape[1] // 600)
    for box in corners(boxes):
        cam = box @ projection[:3, :3].T + projection[:3, 3]
        for a, b in _EDGES:
            p, q = cam[a], cam[b]
            if p[2] < _NEAR and q[2] < _NEAR:
                continue
            if min(p[2], q[2]) < _NEAR:
                share = (_NEAR - p[2]) / (q[2] - p[2])
                cut = p + share * (q - p)
                p, q = (cut, q) if p[2] < _NEAR else (p, cut)
            ends = [tuple(int(v) for v in np.clip(e[:2] / e[2], -1e4, 1e4)) for e in (p, q)]
            cv2.line(image, ends[0], ends[1], color, thickness, cv2.LINE_AA)


def camera_sheet(
    root: Path, frame: Frame, layers: Sequence[tuple[Boxes, tuple[int, int, int]]], width: int = 480
) -> np.ndarray:
    """The images (RGB, rows of three) with layers of boxes in the LiDAR frame, each in a colour.

    Raises:
        FD3DError: an image cannot be read.
    """
    projections = lidar2img(frame.intrinsics, frame.lidar2cam)
    tiles = []
    for slot in camera_grid(frame.cameras):
        image = cv2.imread(str(root / frame.image_paths[slot]), AS_RECORDED)
        if image is None:
            raise FD3DError(f"image {root / frame.image_paths[slot]} cannot be read; is the data root complete?")
        image = np.ascontiguousarray(image[..., ::-1])
        for boxes, color in layers:
            draw_camera(image, boxes, projections[slot], color)
        height = round(image.shape[0] * width / image.shape[1])
        tile = cv2.resize(
            image, (width, height), interpolation=cv2.INTER_AREA if image.shape[1] > width else cv2.INTER_CUBIC
        )
        cv2.putText(tile, frame.cameras[slot], (6, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1, cv2.LINE_AA)
        tiles.append(tile)
    tallest, columns = max(len(tile) for tile in tiles), min(3, len(tiles))
    tiles = [np.pad(tile, ((0, tallest - len(tile)), (0, 0), (0, 0))) for tile in tiles]
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
    return np.vstack([np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)])


def bev_figure(
    layers: Mapping[str, tuple[Boxes, str]],
    extent: float,
    lidar2ego: np.ndarray,
    energy: np.ndarray | None = None,
    focal: np.ndarray | None = None,
) -> Figure:
    """Bird's-eye view in the frame of reference, metres; x to the right of the picture, y upwards, whichever is ahead.

    The marker of the ego vehicle points ahead, and the axes are named by their directions unless these are LIDAR_TOP's (x to the
    right of the car, y forward).

    Args:
        layers: boxes (n, 9) and a colour by name.
        extent: half side of the view.
        lidar2ego: (4, 4) from the frame of reference to the ego frame, of the frame that is drawn.
        energy: (H, W) feature energy under the boxes, NaN where unknown.
        focal: bool (H, W) whose outline is drawn.
    """
    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.add_subplot()
    span = (-extent, extent, -extent, extent)
    if energy is not None:
        axes.imshow(energy, origin="lower", extent=span, cmap="magma")
    if focal is not None:
        axes.contour(focal.astype(float), levels=[0.5], extent=span, colors="white", linewidths=0.5)
    for name, (boxes, color) in layers.items():
        for i, box in enumerate(corners(boxes)):
            outline = box[[4, 6, 2, 0, 4], :2]
            axes.plot(*outline.T, color=color, lw=1, label=name if i == 0 else None)
            axes.plot(*np.stack([boxes[i, :2], box[[4, 6], :2].mean(0)]).T, color=color, lw=1)
    directions = Directions.of(lidar2ego)
    marker = MarkerStyle("^").rotated(deg=directions.forward - 90)
    axes.plot(0, 0, marker=marker, ls="", color="tab:gray", ms=8)
    x, y = ("x, m", "y, m") if directions.up else (f"x ({directions.x}), m", f"y ({directions.y}), m")
    axes.set(xlim=span[:2], ylim=span[2:], aspect="equal", xlabel=x, ylabel=y)
    if axes.get_legend_handles_labels()[0]:  # none of layers without boxes
        axes.legend(loc="upper right", fontsize=8)
    return figure


def to_png(figure: Figure) -> bytes:
    """A figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return buffer.getvalue()


def beside(sheet: np.ndarray, figure: Figure) -> np.ndarray:
    """A camera sheet with a square figure at its right, as high as the sheet; RGB."""
    drawn = cv2.imdecode(np.frombuffer(to_png(figure), np.uint8), cv2.IMREAD_COLOR)
    return np.hstack([sheet, cv2.resize(drawn, (len(sheet), len(sheet)))[..., ::-1]])


def data_uri(content: bytes, kind: str) -> str:
    """Data URI of an image, for a page that stands alone."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def jpeg(image: np.ndarray, quality: int = 85) -> bytes:
    """An RGB image as JPEG."""
    return cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def stored_energy(stored: Mapping[str, np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """L2 norm over channels of a frame's stored BEV cells as a map (H, W), NaN where nothing is stored."""
    if "bev/dense" in stored:
        return np.linalg.norm(stored["bev/dense"].astype(np.float32), axis=-1)
    energy = np.full(size[0] * size[1], np.nan)
    energy[stored["bev/index"]] = np.linalg.norm(stored["bev/values"].astype(np.float32), axis=-1)
    return energy.reshape(size)
