"""Weighted bilinear reading of feature maps on a CPU, the core of deformable attention and deformable convolution there.

``grid_sample`` gathers channel by channel and keeps every sample; here whole channel vectors are added up where they lie,
several times faster. For inference: there is no backward pass.
"""

from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from torch import Tensor

_ZERO, _ONE = np.float32(0), np.float32(1)
_LANES = 16  # channels worked on at a time


@intrinsic
def _add_corners(typing_context, out, at, table, from_a, from_b, from_c, from_d, a, b, c, d):  # type: ignore[no-untyped-def]
    """``out[at + i] += a * table[from_a + i] + ... + d * table[from_d + i]`` for ``_LANES`` channels i.

    A loop takes a third longer: the compiler cannot know that ``out`` and ``table`` lie apart, and checks each time.
    """
    vector = ir.VectorType(ir.FloatType(), _LANES)
    first = ir.Constant(ir.VectorType(ir.IntType(32), _LANES), [0] * _LANES)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        def pointer(argument, index):  # type: ignore[no-untyped-def]
            array = context.make_array(signature.args[argument])(context, builder, args[argument])
            return builder.bitcast(builder.gep(array.data, [index]), vector.as_pointer())

        def product(corner):  # type: ignore[no-untyped-def]
            share = builder.insert_element(ir.Constant(vector, ir.Undefined), args[7 + corner], first.type.element(0))
            values = builder.load(pointer(2, args[3 + corner]), align=4)
            return builder.fmul(builder.shuffle_vector(share, share, first), values, flags=("contract",))

        def plus(one, other):  # type: ignore[no-untyped-def]
            return builder.fadd(one, other, flags=("contract",))

        # the sum is added last: the next one waits for nothing else
        reading = plus(plus(product(0), product(1)), plus(product(2), product(3)))
        target = pointer(0, args[1])
        builder.store(plus(builder.load(target, align=4), reading), target, align=4)
        return context.get_dummy_value()

    return types.void(out, at, table, from_a, from_b, from_c, from_d, a, b, c, d), codegen


@numba.njit(parallel=True, cache=True, fastmath={"contract"})
def _gather(
    table: np.ndarray,
    sizes: np.ndarray,
    points: np.ndarray,
    scale: np.ndarray,
    shift: np.float32,
    weights: np.ndarray,
    references: np.ndarray | None,
    bias: np.ndarray | None,
    out: np.ndarray,
) -> None:
    # numba compiles a version of its own for arguments that are None, without what they guard
    num, heads, levels, samples = weights.shape
    dims = table.shape[2]
    flat_table, flat_out = table.reshape(-1), out.reshape(-1)
    stride, whole = heads * dims, dims // _LANES * _LANES
    for n in numba.prange(num):
        for m in range(heads):
            out[n, m] = 0
            to = (n * heads + m) * dims
            start = 0
            for level in range(levels):
                height, width = sizes[level, 0], sizes[level, 1]
                scale_x, scale_y = scale[level, 0], scale[level, 1]
                of_level, shares = points[n, m, level], weights[n, m, level]
                inside, r = _ZERO, 0
                own = level if references is not None and references.shape[1] > 1 else 0
                for p in range(samples):
                    x, y = of_level[p, 0] * scale_x + shift, of_level[p, 1] * scale_y + shift
                    if references is not None:
                        x += references[n, own, r, 0] * np.float32(width)
                        y += references[n, own, r, 1] * np.float32(height)
                        r = r + 1 if r + 1 < references.shape[2] else 0
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
                    inside += a + b + c + d
                    upper, lower = start + row * width, start + next_row * width
                    from_a, from_c = (upper + col) * stride + m * dims, (lower + col) * stride + m * dims
                    from_b, from_d = from_a + (next_col - col) * stride, from_c + (next_col - col) * stride
                    for i in range(0, whole, _LANES):
                        _add_corners(  # type: ignore[call-arg]
                            flat_out, to + i, flat_table, from_a + i, from_b + i, from_c + i, from_d + i, a, b, c, d
                        )
                    for i in range(whole, dims):
                        flat_out[to + i] += (
                            a * flat_table[from_a + i]
                            + b * flat_table[from_b + i]
                            + c * flat_table[from_c + i]
                            + d * flat_table[from_d + i]
                        )
                if bias is not None:
                    out[n, m] += inside * bias[level, m]
                start += height * width


def gather(
    table: Tensor,
    sizes: Tensor,
    points: Tensor,
    weights: Tensor,
    in_cells: bool = False,
    references: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Sum bilinear readings of maps; zeros lie around them.

    Args:
        table: (sum H*W, M, D) the levels' cells, row-major, one level after the other.
        sizes: (levels, 2) int64 rows and columns.
        points: (N, M, levels, P, 2) x, y in 0..1 of each level's extent, or in cells (0 is the centre of the first), or
            with ``references`` the offsets from them in cells.
        weights: (N, M, levels, P) of each reading. All but ``sizes`` float32, all on the CPU.
        references: (N, levels or 1, R, 2) x, y in 0..1; R divides P, and point p starts at reference p modulo R.
        bias: (levels, M, D) added to every cell of a level, as the bias of the projection that made the table would be: here
            the bias costs a sum per reading, in the projection a pass over the table.

    Returns:
        (N, M, D).
    """
    out = table.new_empty(*weights.shape[:2], table.shape[2])
    unit = not in_cells and references is None
    scale = sizes.flip(-1).float() if unit else torch.ones(sizes.shape)
    shift = np.float32(0 if in_cells else -0.5)
    arguments = (table, sizes, points, scale, shift, weights, references, bias, out)
    arrays: list[Any] = [t.contiguous().numpy() if isinstance(t, Tensor) else t for t in arguments]
    threads = torch.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    _gather(*arrays)
    if torch.get_num_threads() != threads:  # numba's start sets what OpenMP, and so torch, takes for the default
        torch.set_num_threads(threads)
    return out
