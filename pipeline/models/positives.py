"""Number of annotated boxes that the detection losses are divided by."""

from collections.abc import Iterator
from contextlib import contextmanager

from mmdet.utils import reduce_mean
from torch import Tensor

_of_update: float | None = None


@contextmanager
def positives_of_update(mean: float) -> Iterator[None]:
    """Divide the detection losses inside by a number that all batches of an update share.

    An update over A accumulated batches of each of W processes averages A x W losses. Dividing every one of them by the
    mean number of boxes of those batches makes the average the sum of all errors over the number of all boxes, however the
    frames of the update are divided; each batch's own number would weigh a box in a crowded batch less.

    Args:
        mean: boxes per batch, over all batches and processes of the update.
    """
    global _of_update
    _of_update = mean
    try:
        yield
    finally:
        _of_update = None


def mean_positives(count: Tensor) -> float:
    """Positives per batch, at least 1: of the update where they are told, else the mean of ``count`` over the processes."""
    if _of_update is not None:
        return max(_of_update, 1.0)
    return float(reduce_mean(count).clamp(min=1).item())
