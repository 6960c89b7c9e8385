"""Live frames refused by name: images, calibration and poses that cannot be."""

from collections.abc import Iterable, Sequence

import numpy as np

from pipeline.errors import FD3DError


def checked_images(
    images: Iterable[np.ndarray], views: int | None, sizes: Sequence[tuple[int, int]] | None
) -> list[np.ndarray]:
    """Images of a frame, one of every camera.

    Args:
        images: arrays (H, W, 3) uint8.
        views: number of cameras; None for any.
        sizes: rows and columns of each camera's image; None for any.

    Raises:
        FD3DError: naming the first image that is missing or does not fit.
    """
    if isinstance(images, str) or not hasattr(images, "__iter__"):
        raise FD3DError(f"images are of type {type(images).__name__}; give V arrays (H, W, 3) uint8, RGB")
    given = list(images)
    if not given or views not in (None, len(given)):
        raise FD3DError(f"a frame has {len(given)} images, the detector {views} cameras; give it its own rig")
    for number, image in enumerate(given):
        if image is None:
            raise FD3DError(f"image {number} is missing; give a frame only when every camera has an image")
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape[2:] != (3,) or not image.size:
            kind = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
            raise FD3DError(f"image {number} is {kind}; give (H, W, 3) uint8, RGB")
        if sizes is not None and image.shape[:2] != sizes[number]:
            rows, columns = sizes[number]
            raise FD3DError(
                f"image {number} is {image.shape[0]}x{image.shape[1]}, the file was exported for {rows}x{columns}; export the detector "
                "for this rig"
            )
    return given


def check_calibration(intrinsics: np.ndarray, lidar2cam: np.ndarray, lidar2ego: np.ndarray, views: int) -> None:
    """Refuse a calibration that cannot be.

    Args:
        intrinsics: (V, 3, 3) pixels.
        lidar2cam: (V, 4, 4).
        lidar2ego: (4, 4).
        views: V.

    Raises:
        FD3DError: naming the matrix.
    """
    check_finite("calibration.intrinsics", intrinsics, (views, 3, 3))
    for number, matrix in enumerate(np.asarray(intrinsics)):
        if np.diag(matrix)[:2].min() <= 0 or np.abs(matrix[2] - (0, 0, 1)).max() > 1e-6:
            raise FD3DError(
                f"calibration.intrinsics[{number}] is no camera matrix; give ((fx, 0, cx), (0, fy, cy), (0, 0, 1)) in pixels"
            )
    check_rigid("calibration.lidar2cam", lidar2cam, (views, 4, 4))
    check_rigid("calibration.lidar2ego", lidar2ego, (4, 4))


def check_finite(name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    """Refuse an array of another shape, or with numbers that are not finite."""
    try:
        fits = np.shape(array) == shape and bool(np.isfinite(np.asarray(array, np.float64)).all())
    except (TypeError, ValueError):  # ragged, or no numbers
        raise FD3DError(f"{name} is no array of numbers; give {shape}") from None
    if not fits:
        raise FD3DError(f"{name} has shape {np.shape(array)} or numbers that are not finite; give {shape}")


def check_rigid(name: str, matrices: np.ndarray, shape: tuple[int, ...]) -> None:
    """Refuse matrices (..., 4, 4) that are no rotation and translation: transposed, scaled or mirrored ones."""
    check_finite(name, matrices, shape)
    for number, matrix in enumerate(np.asarray(matrices, np.float64).reshape(-1, 4, 4)):
        turn = matrix[:3, :3]
        fits = np.allclose(turn @ turn.T, np.eye(3), atol=1e-2) and np.linalg.det(turn) > 0
        if not fits or not np.allclose(matrix[3], (0, 0, 0, 1), atol=1e-6):
            which = name if shape == (4, 4) else f"{name}[{number}]"
            raise FD3DError(f"{which} is no rigid motion; give a rotation and a translation above the row (0, 0, 0, 1)")
