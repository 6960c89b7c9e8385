"""Weighted bilinear reading of feature maps on a CPU, the core of deformable attention and deformable convolution there.

``grid_sample`` gathers channel by channel and keeps every sample; here whole channel vectors are added up where they lie,
several times faster. For inference: there is no backward pass.
"""

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

_ZERO, _ONE = np.float32(0), np.float32(1)


@numba.njit(parallel=True, cache=True, fastmath={"contract"})
def _gather(
    table: np.ndarray,
    sizes: np.ndarray,
    points: np.ndarray,
    scale: np.ndarray,
    shift: np.float32,
    weights: np.ndarray,
    out: np.ndarray,
) -> None:
    num, heads, levels, samples = weights.shape
    dims = table.shape[2]
    for n in numba.prange(num):
        for m in range(heads):
            total = out[n, m]
            total[:] = 0
            start = 0
            for level in range(levels):
                height, width = sizes[level, 0], sizes[level, 1]
                scale_x, scale_y = scale[level, 0], scale[level, 1]
                of_level, shares = points[n, m, level], weights[n, m, level]
                for p in range(samples):
                    x, y = of_level[p, 0] * scale_x + shift, of_level[p, 1] * scale_y + shift
                    if not (x > -1 and y > -1 and x < width and y < height):
                        continue
                    col, row = int(x + _ONE) - 1, int(y + _ONE) - 1
                    right, low = x - np.float32(col), y - np.float32(row)
                    left, top = _ONE - right, _ONE - low
                    next_col, next_row = col + 1, row + 1
                    # what lies outside is zero: a cell inside stands in for it with share 0
                    if col < 0:
                        col, left = 0, _ZERO
                    if row < 0:
                        row, top = 0, _ZERO
                    if next_col >= width:
                        next_col, right = col, _ZERO
                    if next_row >= height:
                        next_row, low = row, _ZERO
                    top, low = top * shares[p], low * shares[p]
                    a, b, c, d = top * left, top * right, low * left, low * right
                    upper, lower = start + row * width, start + next_row * width
                    upper_left, upper_right = table[upper + col, m], table[upper + next_col, m]
                    lower_left, lower_right = table[lower + col, m], table[lower + next_col, m]
                    for i in range(dims):
                        total[i] += a * upper_left[i] + b * upper_right[i] + c * lower_left[i] + d * lower_right[i]
                start += height * width


def gather(table: Tensor, sizes: Tensor, points: Tensor, weights: Tensor, in_cells: bool = False) -> Tensor:
    """Sum bilinear readings of maps; zeros lie around them.

    Args:
        table: (sum H*W, M, D) the levels' cells, row-major, one level after the other.
        sizes: (levels, 2) int64 rows and columns.
        points: (N, M, levels, P, 2) x, y in 0..1 of each level's extent, or in cells (0 is the centre of the first).
        weights: (N, M, levels, P) of each reading. All but ``sizes`` float32, all on the CPU.

    Returns:
        (N, M, D).
    """
    out = table.new_empty(*weights.shape[:2], table.shape[2])
    scale = torch.ones(sizes.shape) if in_cells else sizes.flip(-1).float()
    shift = np.float32(0 if in_cells else -0.5)
    arguments = (table, sizes, points, scale, shift, weights, out)
    arrays: list[Any] = [t.contiguous().numpy() if isinstance(t, Tensor) else t for t in arguments]
    threads = torch.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    _gather(*arrays)
    if torch.get_num_threads() != threads:  # numba's start sets what OpenMP, and so torch, takes for the default
        torch.set_num_threads(threads)
    return out
