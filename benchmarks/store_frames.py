"""Frames of BEVFormer-Base size for the store's benchmark: real images, random weights, queries from the annotations.

No trained expert is at hand. The features come from the config's detector with the weights of the parity data. Of its
queries only what does not depend on training is kept (states, attention weights, offsets); where they stand is set here:

- a query on every annotated box that detectors are trained on: centre in the BEV extent, a LiDAR or radar point inside;
- two false ones per annotated box, moved, turned and resized at random (``CENTRE``, ``JITTER``), so that areas are as generous as an
  imperfect expert's;
- the rest, up to K, are the detector's own with scores that span no area, as most of a real expert's K are.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor

from benchmarks.weights import fill
from pipeline.data.frames import frame_batches
from pipeline.data.index import FrameIndex, build_index
from pipeline.data.source import FrameSource
from pipeline.expert import BEVReading, ExpertFrame, TappedExpert, build_adapter
from pipeline.models.build import build_detector, load_config
from pipeline.models.fold import fold_batchnorm

CENTRE = 1.0
"""Standard deviation of a false box's centre, metres of x and y. BEVFormer-Base's published mATE of 0.67 m would be 0.54."""
# Standard deviations of a false box's yaw, radians, and of the logarithm of its sizes. On average that is as far off as
# BEVFormer-Base's published mAOE of 0.37 rad and mASE of 0.27.
JITTER = {"yaw": 0.46, "size": 0.13}


@dataclass
class RealFrame:
    """One key frame as stage 1 sees it.

    Attributes:
        expert: the detector's frame, on the CPU, with queries as described above.
        lidar2img: (V, 4, 4) to pixels of the detector's unpadded image.
        truth: (n, 9) those annotated boxes, LiDAR frame.
    """

    token: str
    expert: ExpertFrame
    lidar2img: Tensor
    truth: Tensor


def real_frames(
    config: Path, root: Path, version: str, scratch: Path, queries: int, centre: float = CENTRE
) -> Iterator[RealFrame]:
    """Every key frame below ``root``; the detector's outputs are kept in ``scratch`` and reused.

    Args:
        centre: standard deviation of a false box's centre, metres.
    """
    cfg = load_config(config)
    scratch.mkdir(parents=True, exist_ok=True)
    index_file = scratch / "index.npz"
    index = FrameIndex.load(index_file, root) if index_file.exists() else build_index(root, version, index_file)
    tokens = [index[row].token for row in index.select("all")]
    outputs = {token: scratch / f"{token}.pt" for token in tokens}
    if not all(path.exists() for path in outputs.values()):
        for token, saved in _run(cfg, FrameSource(index_file, root, "all")):
            torch.save(saved, scratch / "unfinished")
            os.replace(scratch / "unfinished", outputs[token])
    for token, path in outputs.items():
        saved = torch.load(path, weights_only=False, mmap=True)
        found = index[index.row(token)]
        boxes = torch.from_numpy(np.nan_to_num(found.boxes[found.num_lidar_pts + found.num_radar_pts > 0]))
        x0, y0, _, x1, y1, _ = cfg.pc_range
        inside = (boxes[:, 0] > x0) & (boxes[:, 0] < x1) & (boxes[:, 1] > y0) & (boxes[:, 1] < y1)
        expert = with_annotated_queries(saved["frame"], boxes[inside], cfg.pc_range, queries, centre)
        yield RealFrame(token, expert, saved["lidar2img"], boxes[inside])


def _run(cfg: Config, source: FrameSource) -> Iterator[tuple[str, dict]]:
    """Token, and the detector's frame with its camera matrices."""
    model = build_detector(cfg)
    # images not divided by a standard deviation are some 64 times larger
    fill(model, 1.0 if min(cfg.model.data_preprocessor.std) > 1 else 1 / 64)
    fold_batchnorm(model.eval())
    expert = TappedExpert(model, build_adapter(cfg), num_queries=cfg.model.pts_bbox_head.num_query)
    for batch in frame_batches(cfg, source, None, 0):
        (frame,), (sample,) = expert.run(batch)
        yield sample.token, {"frame": frame, "lidar2img": torch.as_tensor(sample.frames[-1]["lidar2img"]).float()}


def with_annotated_queries(
    frame: ExpertFrame, truth: Tensor, pc_range: list[float], queries: int, centre: float = CENTRE
) -> ExpertFrame:
    """The frame with K queries on annotated boxes (score 0.9), false ones (0.3) and the detector's own (0.01).

    A query keeps the offsets of its sampled positions, in cells, and moves to its box.

    Args:
        truth: (n, 9) LiDAR frame.
        centre: standard deviation of a false box's centre, metres.
    """
    assert isinstance(frame.reading, BEVReading) and frame.features is not None and frame.reference is not None
    generator = torch.Generator().manual_seed(0)
    false = truth.repeat(2, 1)
    noise = torch.randn(false.shape, generator=generator)
    false[:, :2] += centre * noise[:, :2]
    false[:, 3:6] *= (JITTER["size"] * noise[:, 3:6]).exp()
    false[:, 6] += JITTER["yaw"] * noise[:, 6]
    placed = torch.cat([truth, false])[:queries]
    n = len(placed)
    score = torch.full((queries,), 0.01)
    score[:n] = 0.3
    score[: len(truth)] = 0.9
    low, high = torch.tensor(pc_range).view(2, 3)
    boxes, reference = frame.boxes[:queries].clone(), frame.reference[:queries].clone()
    old = reference.clone()
    boxes[:n] = placed.float()
    reference[:n] = ((placed[:, :3].float() - low) / (high - low)).clamp(0, 1)
    shift = (reference - old)[None, :, None, None, :2]
    reading = BEVReading(frame.reading.sampling[:, :queries] + shift, frame.reading.attention[:, :queries])
    return replace(
        frame,
        boxes=boxes,
        score=score,
        label=frame.label[:queries],
        reference=reference,
        features=frame.features[:queries],
        reading=reading,
    )
