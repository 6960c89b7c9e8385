"""Frames as detectors take them: data sets, the transforms of a config, batches in time order."""

from collections.abc import Iterator, Sequence
from typing import Any

from mmdet3d.registry import DATASETS
from mmengine.config import Config
from torch.utils.data import DataLoader, Subset

from pipeline.data.augment import Augment, read_augment
from pipeline.data.dataset import FrameDataset  # noqa: F401  registered whatever a config's own custom_imports are
from pipeline.data.index import FrameIndex
from pipeline.data.source import FrameSource
from pipeline.data.transforms import refuse_pixel_moving
from pipeline.data.workers import check_shared_memory, loader_options, worker_errors


def frame_pipeline(cfg: Config, train: bool, targets: Sequence[dict] = ()) -> list[dict]:
    """The transforms of a detector config: decode, augment, and for a distiller load the expert's targets.

    Args:
        targets: transforms that load the expert's targets of an item's frame (:mod:`pipeline.distill.loading`).

    Raises:
        FD3DError: an augmentation moves pixels although the expert's targets are loaded, or a wrong setting in ``augment``.
    """
    augment = read_augment(cfg) if train else Augment()
    steps: list[dict] = [dict(type="LoadMultiViewImages", scale=cfg.image.scale, to_rgb=cfg.image.to_rgb)]
    if augment.photometric:
        steps.append(dict(type="PhotometricDistortion"))
    if augment.photometric_per_image:
        steps.append(dict(type="PhotometricDistortionPerImage"))
    if train:
        steps.append(dict(type="LoadBoxes", pc_range=list(cfg.pc_range)))
    steps += [*targets, dict(type="PackFrames", compact=_unpacks(cfg))]
    if targets:
        refuse_pixel_moving(steps)
    return steps


def _unpacks(cfg: Config) -> bool:
    """Whether the detector's preprocessor is the project's, which takes images in two bytes a value."""
    model = cfg.get("model") or {}
    return (model.get("data_preprocessor") or {}).get("type") == "FramePreprocessor"


def frame_dataset(cfg: Config, source: FrameSource, train: bool, targets: Sequence[dict] = ()) -> dict:
    """mmengine dataset config; arguments as of :func:`frame_pipeline`."""
    augment = read_augment(cfg) if train else Augment()
    return dict(
        type="FrameDataset",
        index=str(source.index),
        root=str(source.root),
        split=source.split,
        queue_length=cfg.queue_length if train else 1,
        pipeline=frame_pipeline(cfg, train, targets),
        test_mode=not train,
        thin_queue=augment.thin_queue,
        boxes_within=list(cfg.pc_range) if augment.replace_empty else None,
        class_balanced=augment.class_balanced,
    )


def frame_batches(
    cfg: Config, source: FrameSource, rows: Sequence[int] | None, workers: int
) -> Iterator[dict[str, Any]]:
    """Collated batches of one frame each, decoded ahead by ``workers`` processes.

    Args:
        rows: dataset rows in the order wanted; None is the whole split.

    Raises:
        FD3DError: bad input, or shared memory that is too small for the workers.
    """
    dataset = DATASETS.build(frame_dataset(cfg, source, train=False))
    check_shared_memory(batch_bytes(cfg, dataset.index, 1, 1), workers)
    subset = dataset if rows is None else Subset(dataset, list(rows))
    with worker_errors():
        yield from DataLoader(subset, 1, num_workers=workers, collate_fn=collate, **loader_options(workers))


def batch_bytes(cfg: Config, index: FrameIndex, frames: int, items: int, train: bool = False) -> int:
    """Bytes of a batch's images on the way from a worker.

    Args:
        frames: number of frames in an item's queue.
        items: number of items in a batch.
        train: whether the config's augmentations apply.
    """
    scale = cfg.image.scale
    sizes = index.arrays["image_sizes"][0]
    pixels = len(sizes) * (sizes.max(0) * scale).round().prod()
    integral = scale == 1 and not (train and read_augment(cfg).photometric_per_image)
    width = 1 if integral else 2 if _unpacks(cfg) else 4
    return int(3 * pixels * width * frames * items)


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Batch of a list of items, in the layout that data preprocessors take."""
    return {
        "inputs": {"img": [item["inputs"]["img"] for item in items]},
        "data_samples": [item["data_samples"] for item in items],
    }
