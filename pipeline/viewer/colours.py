"""Fixed scales for a page's BEV features: energy, and the first three principal components as red, green and blue."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

_SAMPLE = 2000  # cells per frame that the scales' percentiles are taken from
_PERCENTILES = (1, 99)


@dataclass(frozen=True)
class FeatureScales:
    """One basis and one scale for all frames of a page, so that a colour means the same in each of them.

    Attributes:
        mean: (C,) of the features.
        axes: (C, 3) unit vectors of the first principal components; a missing component is zero.
        explained: (3,) share of the variance along each.
        low, high: (4,) range of the energy (L2 norm over channels) and of the three components that 0..255 stand for.
    """

    mean: np.ndarray
    axes: np.ndarray
    explained: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def fit(cls, frames: Iterable[np.ndarray]) -> "FeatureScales":
        """Scales from the features (n, C) of every frame; one frame at a time is in memory."""
        total: np.ndarray | float = 0.0
        products: np.ndarray | float = 0.0
        count, samples, rng = 0, [], np.random.default_rng(0)
        for frame in frames:
            values = frame.astype(np.float32)
            count += len(values)
            total = total + values.sum(0, dtype=np.float64)
            products = products + (values.T @ values).astype(np.float64)
            samples.append(values[rng.permutation(len(values))[:_SAMPLE]])
        sample = np.concatenate(samples)
        mean = np.asarray(total) / max(count, 1)
        covariance = np.asarray(products) / max(count, 1) - np.outer(mean, mean)
        variance, vectors = np.linalg.eigh(covariance)
        variance, axes = variance[::-1].clip(0), vectors[:, ::-1][:, :3]
        # an eigenvector's sign is free: the same store shall give the same colours
        axes = axes * np.where(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])] < 0, -1.0, 1.0)
        axes = np.pad(axes, ((0, 0), (0, 3 - axes.shape[1])))
        explained = np.pad(variance[:3], (0, max(0, 3 - len(variance)))) / max(float(variance.sum()), 1e-12)
        measured = _measure(sample, mean, axes)
        low, high = np.percentile(measured, _PERCENTILES, axis=0) if len(measured) else (np.zeros(4), np.ones(4))
        return cls(mean, axes, explained, low, np.maximum(high, low + 1e-6))

    def quantise(self, values: np.ndarray) -> np.ndarray:
        """Features (n, C) as uint8 (n, 4): energy, then the three components; beyond the scale is clipped."""
        shares = (_measure(values.astype(np.float32), self.mean, self.axes) - self.low) / (self.high - self.low)
        return np.rint(255 * shares.clip(0, 1)).astype(np.uint8)


def _measure(values: np.ndarray, mean: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Energy and components (n, 4) of features (n, C)."""
    return np.concatenate([np.linalg.norm(values, axis=1, keepdims=True), (values - mean) @ axes], 1)
