"""Learning how features are coded, from cells of some frames, before the first shard of a dump."""

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from torch import Tensor

from pipeline.errors import FD3DError, counted
from pipeline.focal.codes import FeatureCode
from store_schema import MapCode
from store_schema.codes import Code

SAMPLE = 16_384
"""Cells of each map that a code is learned from: 64 for every entry of a codebook."""
_ROUNDS = 12
"""Rounds of k-means; the error of held-out features falls by less than 1 % in 12 more."""
_CHECKED = 2_048  # cells of the sample that a code is tried on
_POOR = 0.5  # error in shares of the spread, from which a code is warned of
_LAST_BITS = 1e-6  # error in shares of the features that float32's rounding explains
_LEAST = {
    "pq": 1e-18,
    "pca": 1e-11,
}  # spread below which squares are no normal float32, or steps are the least there are
_MOST = 1e17  # spread above which sums of squares may overflow
_TAILS = 0.001
"""Share of the sample that lies beyond the range of a component, on each side."""


def sample_frames(scenes: Mapping[str, Sequence[str]], count: int) -> list[list[str]]:
    """Scenes, as tokens in time order, spread evenly over all, that have at least ``count`` frames together.

    A scene is run from its start and whole, so that the sample has frames with as much history as the store.
    """
    tokens = [list(scenes[name]) for name in sorted(scenes)]
    mean = sum(map(len, tokens)) / len(tokens)
    number = min(len(tokens), -(-count // max(int(mean), 1)))
    return [tokens[i * len(tokens) // number] for i in range(number)]


class CellSample:
    """Features of cells of a map, at most so many from each frame.

    Args:
        per_frame: number of cells.
        seed: of the choice of cells.
    """

    def __init__(self, per_frame: int, seed: int = 0) -> None:
        self.per_frame, self.rng = per_frame, np.random.default_rng(seed)
        self.taken: list[NDArray[np.float32]] = []

    def add(self, feature: Tensor, mask: Tensor) -> None:
        """Take cells of a map (..., C, H, W) from where ``mask`` (..., H, W) is True."""
        last = feature.movedim(-3, -1)
        index = mask.flatten().nonzero()[:, 0]
        chosen = self.rng.permutation(len(index))[: self.per_frame]
        cells = last.reshape(-1, last.shape[-1])[index[torch.from_numpy(np.sort(chosen)).to(index.device)]]
        self.taken.append(cells.float().cpu().numpy())

    def features(self) -> NDArray[np.float32]:
        """(n, C) of all frames."""
        return np.concatenate(self.taken)


def learn_code(name: str, code: Code, features: NDArray[np.float32]) -> MapCode:
    """Constants of a map's code, the same for the same features.

    Args:
        name: of the map, for messages.
        features: (n, C) finite.

    Raises:
        FD3DError: there are too few features, they vary too little or too much, or the code errs by more than their spread.
    """
    made = _learned(name, code, features)
    _check_error(name, made, features[:: max(len(features) // _CHECKED, 1)])
    return made


def _check_error(name: str, made: MapCode, features: NDArray[np.float32]) -> None:
    """Refuse a code that says less than the mean does, and warn of one that says little: features too large, or a few that outweigh all."""
    given, coder = torch.from_numpy(np.ascontiguousarray(features)), FeatureCode(made)
    error = (coder.decode(coder.encode(given)).double() - given.double()).norm()
    # a spread of last bits only, as of a map that is all but constant, is not kept by any code and is no loss
    least = max(_LAST_BITS * float(given.double().norm()), 1e-30)
    share = float(error / (given.double() - given.double().mean(0)).norm().clamp(min=least))
    if error != 0 and not share <= 1:  # NaN too
        raise FD3DError(
            f"codes of {name} (dump.values: {made.code.kind}, {counted(made.code.bytes, 'byte')}) err by {share:.0%} of the features' spread; raise "
            "dump.code_bytes, or use another dump.values"
        )
    if share > _POOR:
        warnings.warn(
            f"codes of {name} (dump.values: {made.code.kind}, {counted(made.code.bytes, 'byte')}) err by {share:.0%} of the features' spread; more "
            "dump.code_bytes keep more",
            stacklevel=3,
        )


def _check_spread(name: str, code: Code, spread: float, features: NDArray[np.float64]) -> None:
    """Refuse features that float32's range keeps any code from telling apart; a constant map, but for last bits, is coded by its mean."""
    least = _LEAST[code.kind]
    if spread > _LAST_BITS * np.abs(features).max() and not least <= spread <= _MOST:
        raise FD3DError(
            f"features of {name} vary by {spread:.0e}, but dump.values: {code.kind} is for those that vary by {least:.0e} to {_MOST:.0e}; look "
            "at the expert's features (a dead map, or one that overflows), or use another dump.values"
        )


def _learned(name: str, code: Code, features: NDArray[np.float32]) -> MapCode:
    if len(features) < 256:
        raise FD3DError(
            f"{counted(len(features), 'stored cell')} of {name} found to learn dump.values: {code.kind} from, fewer than 256; raise "
            "dump.code_frames, widen the focal areas, or use another dump.values"
        )
    wide = features.astype(np.float64)
    mean = wide.mean(0)
    with threadpool_limits(1):  # the last bits of sums depend on the number of threads
        variance, axes = np.linalg.eigh((wide - mean).T @ (wide - mean) / len(wide))
        _check_spread(name, code, float(np.sqrt(variance.max())), wide)
        order = np.argsort(-variance)
        axes = axes[:, order].T
        axes *= np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]  # either sign is as good
        if code.kind == "pca":
            return _components(code, wide, mean, axes[: code.parts(wide.shape[1])])
        basis = axes[_spread(variance[order], code.bytes)]
        parts = ((wide - mean) @ basis.T).astype(np.float32).reshape(len(wide), code.bytes, -1)
        book = np.stack([_centroids(parts[:, j]) for j in range(code.bytes)])
    return MapCode(code, basis.astype(np.float32), mean.astype(np.float32), book)


def _components(code: Code, wide: NDArray[np.float64], mean: NDArray[np.float64], axes: NDArray[np.float64]) -> MapCode:
    """Steps and ranges of the components that ``axes`` (parts, C) give."""
    numbers = (wide - mean) @ axes.T
    low, high = np.quantile(numbers, [_TAILS, 1 - _TAILS], axis=0)
    step = np.maximum((high - low) / (2**code.bits - 1), 1e-12)
    return MapCode(code, (step[:, None] * axes).astype(np.float32), (mean + low @ axes).astype(np.float32))


def _spread(variance: NDArray[np.float64], groups: int) -> NDArray[np.int64]:
    """Order of principal axes whose products of variances are alike in ``groups`` groups of equal size.

    The allocation of Ge et al. (Optimized product quantization, PAMI 2014): every axis, largest variance first, goes to the group
    with the smallest product that has room.
    """
    size = len(variance) // groups
    logs = np.log(np.maximum(variance, variance.max() * 1e-12 + 1e-300))
    logs -= logs.min()  # above 0, so that an empty group has the smallest product
    members: list[list[int]] = [[] for _ in range(groups)]
    product = np.zeros(groups)
    for axis in range(size * groups):
        room = [g for g in range(groups) if len(members[g]) < size]
        chosen = min(room, key=lambda g: product[g])
        members[chosen].append(axis)
        product[chosen] += logs[axis] + 1e-9
    return np.array([axis for group in members for axis in group])


def _centroids(parts: NDArray[np.float32]) -> NDArray[np.float32]:
    """Entries (256, d) of a codebook for parts (n, d)."""
    distinct = np.unique(parts, axis=0)
    if len(distinct) <= 256:  # k-means would warn; what is left of the book is never nearer
        return np.concatenate([distinct, np.repeat(distinct[-1:], 256 - len(distinct), 0)])
    with warnings.catch_warnings():
        # of entries that coincide, as for dead channels: the code's error tells what that loses
        warnings.simplefilter("ignore")
        fitted = KMeans(256, n_init=1, max_iter=_ROUNDS, tol=0, random_state=0, init="random").fit(parts)
    found: NDArray[np.float32] = fitted.cluster_centers_.astype(np.float32)
    return found
