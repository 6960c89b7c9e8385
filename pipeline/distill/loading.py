"""Transforms that load the expert's targets of an item's frame: from the store, or as images for an online expert."""

from pathlib import Path
from typing import Any

from mmcv.transforms import BaseTransform
from mmdet3d.registry import DATASETS, TRANSFORMS

from store_schema import StoreReader

Item = dict[str, Any]


def cached_targets(store: str | Path, cache_mb: int = 0) -> list[dict[str, Any]]:
    """Transforms that read the expert's targets from a store.

    Args:
        cache_mb: memory of each process for frames that were read before, MB.
    """
    return [dict(type="LoadExpertTargets", store=str(store), cache_bytes=cache_mb * 1_000_000)]


def online_targets(dataset: dict[str, Any]) -> list[dict[str, Any]]:
    """Transforms that load an online expert's images; ``dataset`` as of :class:`LoadExpertFrames`."""
    return [dict(type="LoadExpertFrames", dataset=dataset)]


@TRANSFORMS.register_module()
class LoadExpertTargets(BaseTransform):
    """The expert's cached targets of the last frame.

    Args:
        store: path of a finished store; opened in the process that reads, at the first read.
        cache_bytes: memory of each process for frames that were read before.
    """

    moves_pixels = False

    def __init__(self, store: str, cache_bytes: int = 0) -> None:
        self.reader = StoreReader(store, cache_bytes=cache_bytes)

    def transform(self, results: Item) -> Item:
        """Sets ``expert``, the reader's arrays by name, uint8 features as they are stored."""
        results["expert"] = self.reader.read(results["token"], decode=False)
        return results


@TRANSFORMS.register_module()
class LoadExpertFrames(BaseTransform):
    """The expert's own images of the item's frame and of the frames before, for an expert that runs in the training step.

    The images are decoded once more, by the expert's pipeline, so that no augmentation of the student changes them.

    Args:
        dataset: config of a :class:`~pipeline.data.dataset.FrameDataset` of the same split with the expert's transforms
            and with as many frames in a queue as the expert sees.
    """

    moves_pixels = False

    def __init__(self, dataset: dict) -> None:
        self.dataset = DATASETS.build(dataset)

    def transform(self, results: Item) -> Item:
        """Sets ``expert``: ``img`` (Q, V, 3, H, W) and ``frames``, their metainfo; without the repeats that fill a queue."""
        raw = self.dataset.raw_item(self.dataset.position(results["token"]))
        tokens = [entry["frame"].token for entry in raw["frames"]]
        raw["frames"] = raw["frames"][tokens.count(tokens[0]) - 1 :]
        packed = self.dataset.pipeline(raw)
        results["expert"] = {"img": packed["inputs"]["img"], "frames": packed["data_samples"].frames}
        return results
