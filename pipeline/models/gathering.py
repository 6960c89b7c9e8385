"""Weighted bilinear reading of feature maps on a CPU, the core of deformable attention and deformable convolution there.

``grid_sample`` gathers channel by channel and keeps every sample; here whole channel vectors are added up where they lie,
several times faster. :func:`gather` is for inference, :class:`BatchGather` has a backward pass too.
"""

from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor
from torch.autograd.function import once_differentiable

_ZERO, _HALF, _ONE = np.float32(0), np.float32(0.5), np.float32(1)
_LANES = 16  # channels worked on at a time
_FLOAT = ir.FloatType()
_VECTOR = ir.VectorType(_FLOAT, _LANES)
_FIRST = ir.Constant(ir.VectorType(ir.IntType(32), _LANES), [0] * _LANES)


def _lanes(context, builder, signature, args, array, at):  # type: ignore[no-untyped-def]
    """Pointer to the ``_LANES`` floats of argument ``array`` that begin at argument ``at``."""
    data = context.make_array(signature.args[array])(context, builder, args[array]).data
    return builder.bitcast(builder.gep(data, [args[at]]), _VECTOR.as_pointer())


def _spread(builder, scalar):  # type: ignore[no-untyped-def]
    """Vector of one number."""
    undefined = ir.Constant(_VECTOR, ir.Undefined)
    return builder.shuffle_vector(builder.insert_element(undefined, scalar, _FIRST.type.element(0)), undefined, _FIRST)


@intrinsic
def _add_corners(typing_context, out, at, table, from_a, from_b, from_c, from_d, a, b, c, d):  # type: ignore[no-untyped-def]
    """``out[at + i] += a * table[from_a + i] + ... + d * table[from_d + i]`` for ``_LANES`` channels i.

    A loop takes a third longer: the compiler cannot know that ``out`` and ``table`` lie apart, and checks each time.
    """

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        def product(corner):  # type: ignore[no-untyped-def]
            values = builder.load(_lanes(context, builder, signature, args, 2, 3 + corner), align=4)
            return builder.fmul(_spread(builder, args[7 + corner]), values, flags=("contract",))

        def plus(one, other):  # type: ignore[no-untyped-def]
            return builder.fadd(one, other, flags=("contract",))

        # the sum is added last: the next one waits for nothing else
        reading = plus(plus(product(0), product(1)), plus(product(2), product(3)))
        target = _lanes(context, builder, signature, args, 0, 1)
        builder.store(plus(builder.load(target, align=4), reading), target, align=4)
        return context.get_dummy_value()

    return types.void(out, at, table, from_a, from_b, from_c, from_d, a, b, c, d), codegen


@intrinsic
def _add_product(typing_context, out, at, share, of, begin, table):  # type: ignore[no-untyped-def]
    """``out[at + i] += share * of[begin + i]`` for ``_LANES`` channels i; the sum of ``of[begin + i] * table[at + i]``."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        def lanes(array, at):  # type: ignore[no-untyped-def]
            return _lanes(context, builder, signature, args, array, at)

        target, grad, values = lanes(0, 1), builder.load(lanes(3, 4), align=4), builder.load(lanes(5, 1), align=4)
        part = builder.fmul(_spread(builder, args[2]), grad, flags=("contract",))
        builder.store(builder.fadd(builder.load(target, align=4), part, flags=("contract",)), target, align=4)
        signature_of_sum = ir.FunctionType(_FLOAT, [_FLOAT, _VECTOR])
        total = cgutils.get_or_insert_function(
            builder.module, signature_of_sum, f"llvm.vector.reduce.fadd.v{_LANES}f32"
        )
        return builder.call(total, [_FLOAT(-0.0), builder.fmul(grad, values)], fastmath=("reassoc",))

    return types.float32(out, at, share, of, begin, table), codegen


@numba.njit(cache=True, fastmath={"contract"})
def _corners(x, y, width, height):  # type: ignore[no-untyped-def]
    """The four cells around a point.

    Returns:
        columns and rows (col, row, next col, next row), their shares in the reading (left, right, top, low), and for each of
        the four shares 1 inside the map and 0 outside. A cell inside stands in for one outside, with share 0.
    """
    col, row = int(x + _ONE) - 1, int(y + _ONE) - 1
    right, low = x - np.float32(col), y - np.float32(row)
    left, top = _ONE - right, _ONE - low
    next_col, next_row = col + 1, row + 1
    has_left = has_right = has_top = has_low = _ONE
    if col < 0:
        col, left, has_left = 0, _ZERO, _ZERO
    if row < 0:
        row, top, has_top = 0, _ZERO, _ZERO
    if next_col >= width:
        next_col, right, has_right = col, _ZERO, _ZERO
    if next_row >= height:
        next_row, low, has_low = row, _ZERO, _ZERO
    return (col, row, next_col, next_row), (left, right, top, low), (has_left, has_right, has_top, has_low)


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
                    (col, row, next_col, next_row), (left, right, top, low), _ = _corners(x, y, width, height)
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
    _run(_gather, table, sizes, points, scale, shift, weights, references, bias, out)
    return out


def _run(kernel: Any, *arguments: Any) -> None:
    """Call a kernel on tensors, with as many threads as torch has."""
    arrays = [t.detach().contiguous().numpy() if isinstance(t, Tensor) else t for t in arguments]
    threads = torch.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    kernel(*arrays)
    if torch.get_num_threads() != threads:  # numba's start sets what OpenMP, and so torch, takes for the default
        torch.set_num_threads(threads)


@numba.njit(parallel=True, cache=True, fastmath={"contract"})
def _gather_backward(
    table: np.ndarray,
    sizes: np.ndarray,
    points: np.ndarray,
    weights: np.ndarray,
    grad: np.ndarray,
    grad_table: np.ndarray,
    grad_points: np.ndarray,
    grad_weights: np.ndarray,
) -> None:
    batch, num, heads, levels, samples = weights.shape
    cells, dims = table.shape[1], table.shape[3]
    flat_table, flat_grad, flat_grad_table = table.reshape(-1), grad.reshape(-1), grad_table.reshape(-1)
    stride, whole = heads * dims, dims // _LANES * _LANES
    # One thread handles a head of an item, so no other thread adds to the head's cells, and sums have one order.
    for owned in numba.prange(batch * heads):
        item, m = owned // heads, owned % heads
        for n in range(num):
            begin = ((item * num + n) * heads + m) * dims
            start = item * cells
            for level in range(levels):
                height, width = sizes[level, 0], sizes[level, 1]
                scale_x, scale_y = np.float32(width), np.float32(height)
                of_level, shares = points[item, n, m, level], weights[item, n, m, level]
                grad_of_level, grad_shares = grad_points[item, n, m, level], grad_weights[item, n, m, level]
                for p in range(samples):
                    x, y = of_level[p, 0] * scale_x - _HALF, of_level[p, 1] * scale_y - _HALF
                    if not (x > -1 and y > -1 and x < width and y < height):
                        continue
                    (col, row, next_col, next_row), (left, right, top, low), inside = _corners(x, y, width, height)
                    upper, lower = start + row * width, start + next_row * width
                    at_a, at_c = (upper + col) * stride + m * dims, (lower + col) * stride + m * dims
                    at_b, at_d = at_a + (next_col - col) * stride, at_c + (next_col - col) * stride
                    upper_share, lower_share = shares[p] * top, shares[p] * low
                    a, b, c, d = upper_share * left, upper_share * right, lower_share * left, lower_share * right
                    # products of the output's gradient with the corners
                    on_a = on_b = on_c = on_d = _ZERO
                    for i in range(0, whole, _LANES):
                        on_a += _add_product(flat_grad_table, at_a + i, a, flat_grad, begin + i, flat_table)  # type: ignore[call-arg]
                        on_b += _add_product(flat_grad_table, at_b + i, b, flat_grad, begin + i, flat_table)  # type: ignore[call-arg]
                        on_c += _add_product(flat_grad_table, at_c + i, c, flat_grad, begin + i, flat_table)  # type: ignore[call-arg]
                        on_d += _add_product(flat_grad_table, at_d + i, d, flat_grad, begin + i, flat_table)  # type: ignore[call-arg]
                    for i in range(whole, dims):
                        own = flat_grad[begin + i]
                        on_a += own * flat_table[at_a + i]
                        on_b += own * flat_table[at_b + i]
                        on_c += own * flat_table[at_c + i]
                        on_d += own * flat_table[at_d + i]
                        flat_grad_table[at_a + i] += a * own
                        flat_grad_table[at_b + i] += b * own
                        flat_grad_table[at_c + i] += c * own
                        flat_grad_table[at_d + i] += d * own
                    has_left, has_right, has_top, has_low = inside
                    grad_shares[p] = top * (left * on_a + right * on_b) + low * (left * on_c + right * on_d)
                    along_x = top * (has_right * on_b - has_left * on_a) + low * (has_right * on_d - has_left * on_c)
                    along_y = left * (has_low * on_c - has_top * on_a) + right * (has_low * on_d - has_top * on_b)
                    grad_of_level[p, 0] = shares[p] * scale_x * along_x
                    grad_of_level[p, 1] = shares[p] * scale_y * along_y
                start += height * width


class BatchGather(torch.autograd.Function):
    """:func:`gather` of every item of a batch, with gradients.

    The gradients are the same bits whatever the number of threads.
    """

    @staticmethod
    def forward(ctx: Any, tables: Tensor, sizes: Tensor, points: Tensor, weights: Tensor) -> Tensor:
        """Tables (B, sum H*W, M, D), points (B, N, M, levels, P, 2), weights (B, N, M, levels, P) -> (B, N, M, D)."""
        ctx.save_for_backward(tables, sizes, points, weights)
        items = zip(tables, points, weights, strict=True)
        return torch.stack([gather(table, sizes, at, shares) for table, at, shares in items])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
        """Gradients of tables, points and weights; zero for points that read nothing."""
        tables, sizes, points, weights = ctx.saved_tensors
        grads = [torch.zeros_like(t, memory_format=torch.contiguous_format) for t in (tables, points, weights)]
        _run(_gather_backward, tables, sizes, points, weights, grad, *grads)
        return grads[0], None, grads[1], grads[2]
