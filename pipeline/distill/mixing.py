"""Mixed maps, the expert's features inside the areas and the student's own elsewhere, on which the student's head learns too."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from mmdet3d.structures import Det3DDataSample
from mmengine.dist import all_reduce
from mmengine.logging import MMLogger
from torch import Tensor, nn

from pipeline.errors import FD3DError
from store_schema import StoreSchema

from .base import Distiller, StudentOutputs
from .cells import map_of
from .targets import CellTargets, ChannelScale, ExpertTargets

BLOCK = 50  # updates between two judgements of the gate
FIRST = 200  # updates before the first: a student needs some to explain anything


class MixingGate(nn.Module):
    """Whether the student's head learns on mixed pyramids, by how much of the expert's features the generators explain.

    What mixing gains is a head that reads features which the student's come to resemble. Where the generators do not make the
    expert's features from the student's, there is no resemblance, and mixing teaches the head something else: noise, if the
    expert's features are noisy. The measure is of the student and of the targets alone; that the expert's boxes are wrong, in depth
    say, does not change it.

    Args:
        limit: share of the squared error of the channels' means that the generators may leave, over the updates of a block; 0 for a
            gate that never closes.
    """

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit
        # None until it is read of the buffer, which a resumed training fills
        self._closed: bool | None = None if limit else False
        if limit:
            self.register_buffer("seen", torch.zeros(3))  # errors of a block, those of the means, whether closed
            self.register_buffer("past", torch.tensor([0.0, torch.nan]))  # updates that began closed, share last judged

    @property
    def closed(self) -> bool:
        """Whether mixing pauses."""
        if self._closed is None:
            self._closed = bool(self.seen[2])
            if self._closed:
                judged = not self.past[1].isnan()  # it is not in checkpoints of earlier revisions
                self._tell(f"mixing still pauses{': ' + self._left() if judged else ''}")
        return self._closed

    def see(self, errors: Tensor, of_means: Tensor) -> None:
        """Count a batch: errors (L,) of the generated features by level, and what the channels' means would have made of them."""
        if self.limit:
            self.seen[:2] += torch.stack((errors.sum(), of_means.sum())).detach()

    def begin_update(self, number: int) -> None:
        """Judge the block of updates that ends before update ``number``, from 0 on."""
        if not self.limit:
            return
        if number % BLOCK == 0:
            self._judge(number)
        self.past[0] += self.closed

    def facts(self) -> dict[str, Any]:
        """``mixing_paused``: updates that began while mixing paused; ``unexplained``: the share last judged, None before the first judgement."""
        if not self.limit:
            return {}
        paused, share = self.past.tolist()
        return {"mixing_paused": int(paused), "unexplained": None if math.isnan(share) else round(share, 3)}

    def _judge(self, number: int) -> None:
        closed = self.closed
        all_reduce(self.seen, "mean")  # processes see different frames, and must come to one end
        left, of_means, _ = self.seen.tolist()
        self.seen[:2] = 0
        if number < FIRST or not of_means:  # a block without any area tells nothing
            return
        self._closed = left > self.limit * of_means
        self.seen[2], self.past[1] = self._closed, left / of_means
        if number == FIRST or self._closed != closed:
            does = "pauses" if self._closed else "starts again" if closed else "goes on"
            self._tell(f"mixing {does} after {number} updates: {self._left()}")

    def _left(self) -> str:
        """The share that was judged last, in words."""
        share = self.past[1].item()
        return f"the generators leave {share:.2f} of the expert's pyramid unexplained (distill.mixed_limit is {self.limit:g})"

    @staticmethod
    def _tell(text: str) -> None:
        MMLogger.get_current_instance().warning(text)  # a training shows no lower level where nobody asks for it


def mixed_map(own: Tensor, target: CellTargets, scale: ChannelScale) -> Tensor:
    """Mixed map (N, C, H, W), without gradients.

    Args:
        own: the student's map (N, C, H, W).
        target: the expert's features (n, C) at the cells of the areas, of maps N x H x W, the student's grid.
        scale: channel statistics by which the targets are standardised.
    """
    theirs = map_of(scale.restore_rows(target.values), target.cells)
    return torch.where(target.cells.mask[:, None], theirs.float(), own.detach().float())


def loss_on_mixed(
    distiller: Distiller,
    outputs: StudentOutputs,
    targets: ExpertTargets,
    samples: list[Det3DDataSample],
    truth: tuple[list[Tensor], list[Tensor]],
) -> Tensor:
    """Sum of the student's detection losses on mixed pyramids, whose gradient reaches the student's head alone.

    A head that starts from the expert's reads the expert's features from the first step on. While it learns on both, it
    remains a reader of the features that the other losses draw the student's pyramid to. The idea is that of FD3D's distillation
    head (Zeng et al., CVPR 2023), which detects on the expert's map beside the student; one head for both sides is ours, as
    the reused classifier of SimKD (Chen et al., CVPR 2022) is the teacher's. The pyramid is mixed and not the BEV map, so that
    BEVFormer's encoder, which is a part of its head, learns too, and the features stay right where the expert's depth is wrong.

    Args:
        distiller: whose student is a detector of this project.
        outputs: tapped outputs of the student.
        samples, truth: of the batch, with annotated boxes (n, 9), LiDAR frame, and class numbers (n,).
    """
    levels = [level.detach() for level in outputs.pv]
    for slot, level in enumerate(distiller.levels):
        levels[level] = mixed_map(levels[level], targets.pv[slot], distiller.scale(f"pv/{level}"))
    student: Any = distiller.student
    out = student.detect_on([level.unflatten(0, (len(samples), -1)) for level in levels], samples)
    return torch.stack(list(student.pts_bbox_head.output_loss(out, *truth).values())).sum()


def check_mixed(schema: StoreSchema, levels: Sequence[int], adapted: bool, channels: int) -> None:
    """Refuse mixed maps that the student's head cannot read.

    Args:
        levels: pyramid levels that are distilled.
        adapted: whether the student is a detector of another project.
        channels: channels of the student's pyramid.

    Raises:
        FD3DError: the student is another project's, or expert and student differ in the channels of a level.
    """
    if adapted:
        raise FD3DError("distill.w_mixed is for students of this project, whose heads read any pyramid; set it to 0")
    if not levels:
        raise FD3DError("distill.w_mixed is set, but no level of the pyramid is distilled; set it to 0")
    for level in levels:
        if schema.pv[level][2] != channels:
            raise FD3DError(
                f"distill.w_mixed is set, but the student's pyramid has {channels} channels and level {level} of the expert's "
                f"{schema.pv[level][2]}; set it to 0"
            )
