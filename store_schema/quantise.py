"""Features as one byte each, with an affine map per cell: ``value = offset + scale * code``."""

import numpy as np


def quantise(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Map the range of every cell's channels onto 0..255, rounding to the nearest.

    A cell errs by at most half of its ``scale``; one whose channels are all alike is kept exactly. NaN and infinite
    values end up in the map, where the writer refuses them.

    Args:
        values: (k, C) floating point.

    Returns:
        codes (k, C) uint8 and the map (k, 2) float32 of ``scale`` and ``offset``.
    """
    wide = values.astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        offset = wide.min(1)
        scale = (wide.max(1) - offset) / np.float32(255)
        wide -= offset[:, None]
        wide /= np.where(scale > 0, scale, np.float32(1))[:, None]
        codes = np.minimum(np.rint(wide, out=wide), 255).astype(np.uint8)
    # adding zero turns -0.0 into 0.0
    return codes, np.stack([scale, offset], 1) + np.float32(0)


def dequantise(codes: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Inverse of :func:`quantise`: (k, C) float32."""
    values = codes.astype(np.float32)
    values *= affine[:, :1]
    values += affine[:, 1:]
    return values
