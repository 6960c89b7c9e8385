"""FD3D around any student detector: generators and the three losses, fed from the store (Zeng et al., CVPR 2023)."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample
from torch import Tensor, nn

from pipeline.errors import FD3DError
from pipeline.focal.areas import sampling_neighbours
from pipeline.focal.rule import FocalRule
from pipeline.models.detector import gt_tensors

from ..base import Distiller, StudentOutputs
from ..generators import FeatureGenerator, start_at_zero
from ..head import DistillationHead
from ..losses import block_mask, fine_grained_loss, masked_generation_loss, query_trust
from ..sampling import camera_positions, sample_cameras, sample_values
from ..settings import DistillSettings
from ..targets import CachedFrame, ExpertTargets, Spans, dense_bev, make_targets

_OUTSIDE = -9.0
"""A position that reads no cell."""


@MODELS.register_module()
class FocalDistiller(Distiller):
    """Distiller with FD3D's losses added to the student's own; generators and restoring exist in training only.

    A loss exists where both sides have what it compares: loss_pv with a stored pyramid, loss_bev with two BEV maps,
    loss_fine with what queries read on the BEV map (BEVFormer) or from the cameras (DETR3D).

    Args:
        bev_size: rows and columns of the student's BEV map; None for a student without one.
        bev_channels, pv_channels: channels of the student's BEV map and pyramid.
        kwargs: arguments of :class:`~pipeline.distill.base.Distiller`; settings are :class:`DistillSettings`.

    Raises:
        FD3DError: a setting needs what the store does not cover, or the two sides have nothing in common.
    """

    settings_type = DistillSettings

    def __init__(self, bev_size: tuple[int, int] | None, bev_channels: int, pv_channels: int, **kwargs: Any) -> None:
        super().__init__(bev_size=bev_size, bev_channels=bev_channels, pv_channels=pv_channels, **kwargs)
        stored = FocalRule(**self.manifest["focal"]).of_store(self.schema.layout)
        stored.check_covers(self.settings.rule)
        self.head = self._trainable_head(kwargs["student"]["pts_bbox_head"])
        if self.settings.areas != "queries" and self.schema.layout != "dense":
            raise FD3DError(
                f"distill.areas is {self.settings.areas}, but store {self.store} includes the cells around the expert's queries "
                "only; dump one with dump.layout: dense"
            )
        if self.head is None:
            self.layers = self.chosen("layers", self.schema.layers)
        else:
            self.layers = self.chosen("layers", self.head.num_layers, "the trainable head")
        self.fine = self._what_queries_read(bev_size is not None)
        if self.schema.bev and self.bev_size is not None:
            self.bev_generator = FeatureGenerator(bev_channels, self.schema.bev[2])
        self.pv_generators = nn.ModuleList(FeatureGenerator(pv_channels, self.schema.pv[i][2]) for i in self.levels)
        if self.settings.residual:
            self._start_as_identity(bev_channels, pv_channels)
        for path, constant in self.constants.items() if self.head is None else ():
            name = path.removeprefix("decoder/")
            self.register_buffer(name, torch.from_numpy(constant[list(self.layers)]), persistent=False)

    @property
    def restores_residually(self) -> bool:
        """The setting ``residual``."""
        return bool(self.settings.residual)

    def _start_as_identity(self, bev_channels: int, pv_channels: int) -> None:
        """Zero the generators' last convolutions.

        Raises:
            FD3DError: student and expert differ in channels, so that nothing can be added.
        """
        pairs = [(f"pyramid level {i}", pv_channels, self.schema.pv[i][2]) for i in self.levels]
        generators = list(self.pv_generators)
        if self.schema.bev and self.bev_size is not None:
            pairs.append(("BEV map", bev_channels, self.schema.bev[2]))
            generators.append(self.bev_generator)
        for name, have, want in pairs:
            if have != want:
                raise FD3DError(
                    f"distill.residual is set, but the student's {name} has {have} channels and the expert's {want}; unset it"
                )
        for generator in generators:
            start_at_zero(generator[-1])

    def _trainable_head(self, student_head: dict[str, Any]) -> DistillationHead | None:
        """The head of the setting ``head: trainable``.

        Raises:
            FD3DError: there is no dense BEV map for it, or the student's head reads none.
        """
        if self.settings.head == "frozen":
            return None
        if not self.schema.bev or self.schema.layout != "dense":
            raise FD3DError(
                f"distill.head is trainable, but store {self.store} includes no whole BEV map; dump one of a BEVFormer with "
                "dump.layout: dense, or set head to frozen"
            )
        return DistillationHead(student_head, self.schema.bev, self.settings.rule.num_queries)

    def _what_queries_read(self, student_has_bev: bool) -> str:
        """``bev`` or ``cameras`` where the fine-grained loss is possible and wanted, else ``none``.

        Raises:
            FD3DError: the expert's queries read levels that are not distilled.
        """
        if self.settings.w_fine and self.head is not None:
            return "bev"
        if not self.settings.w_fine or (self.schema.reading == "bev" and not student_has_bev):
            return "none"
        if self.schema.reading == "cameras" and len(self.levels) < len(self.schema.pv):
            raise FD3DError(
                f"distill.levels is {list(self.levels)}, but the expert's queries read all {len(self.schema.pv)} levels; "
                "take all, or set distill.w_fine to 0"
            )
        return self.schema.reading

    def distillation_losses(
        self, outputs: StudentOutputs, frames: list[CachedFrame], data_samples: list[Det3DDataSample]
    ) -> dict[str, Tensor]:
        """loss_pv, loss_bev and loss_fine, as far as both sides allow; with a trainable head also loss_head."""
        s, metas = self.settings, [sample.frames[-1] for sample in data_samples]
        device = (outputs.pv[0] if outputs.bev is None else outputs.bev).device
        truth = gt_tensors(data_samples, device)
        spans: list[Spans | None] | None = None
        if s.areas == "annotations":
            spans = [Spans(boxes, torch.ones(len(boxes), device=device)) for boxes in truth[0]]
        elif s.areas == "everywhere":
            spans = [None for _ in frames]
        if self.head is None:
            targets = self.targets(frames, metas, device, spans, truth)
            return self._as_agreed(self.focal_losses(outputs.bev, outputs.pv, targets, metas), targets)
        found = self.head(torch.stack([dense_bev(frame, self.schema, device)[0] for frame in frames]), *truth)
        trust = query_trust(found.score, max(s.trust_threshold, s.rule.min_score), s.trust_power)
        if spans is None:
            spans = [Spans(*span) for span in zip(found.boxes, trust, strict=True)]
        targets = self.targets(frames, metas, device, spans)
        targets = replace(targets, trust=trust, queries={"sampling": found.sampling, "attention": found.attention})
        layers = list(self.layers)
        projection = found.value_weight[layers], found.value_bias[layers]
        losses = self.focal_losses(outputs.bev, outputs.pv, targets, metas, projection)
        return losses | {"loss_head": s.w_head * found.loss}

    def targets(
        self,
        frames: list[CachedFrame],
        metas: list[dict[str, Any]],
        device: torch.device,
        spans: Sequence[Spans | None] | None = None,
        truth: tuple[list[Tensor], list[Tensor]] | None = None,
    ) -> ExpertTargets:
        """Dense targets of a batch of cached frames; ``spans``, ``truth`` as of :func:`~pipeline.distill.targets.make_targets`."""
        scales = {name: self.scale(name) for name in self.scaled}
        pc_range = self.manifest["coordinates"]["pc_range"]
        return make_targets(
            frames, metas, self.schema, scales, pc_range, self.settings, self.levels, device, spans, truth
        )

    def _as_agreed(self, losses: dict[str, Tensor], targets: ExpertTargets) -> dict[str, Tensor]:
        """Losses that follow the queries' trust, scaled by the share of the trust that the annotations leave."""
        if targets.agreement is None:
            return losses
        follow = losses if self.settings.areas == "queries" else ("loss_fine",)
        return {name: loss * targets.agreement if name in follow else loss for name, loss in losses.items()}

    def focal_losses(
        self,
        bev: Tensor | None,
        pv: list[Tensor],
        targets: ExpertTargets,
        metas: list[dict[str, Any]],
        projection: tuple[Tensor, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """The weighted losses that both sides allow.

        Args:
            bev: the student's map (B, C, h, w), None where one side has none.
            pv: pyramid of the student, levels (B*V, C, Hl, Wl); empty where the store has none.
            metas: per sample the metainfo of the student's current frame.
            projection: weight (L, C, C) and bias (L, C) of the value projections that queries read the BEV map through;
                the expert's by default.

        Raises:
            FD3DError: a level's grid is not the expert's.
        """
        s = self.settings
        losses: dict[str, Tensor] = {}
        if self.levels:
            generated_pv, loss = self._generate_pv(pv, targets, metas)
            losses["loss_pv"] = s.w_pv * loss
        if bev is not None and targets.bev is not None:
            hidden = block_mask(targets.bev.trust > 0, s.mask_ratio, s.block)
            cells = self._needed_of_bev(targets) if self.bev_generator.gathers else None
            generated_bev = self._generate(self.bev_generator, "bev", self.restore(bev), hidden, cells)
            losses["loss_bev"] = s.w_bev * masked_generation_loss(
                generated_bev, targets.bev.standardised, targets.bev.trust
            )
        layers, queries = list(self.layers), targets.queries
        if self.fine == "bev" and targets.bev is not None:
            weight, bias = projection or (self.value_proj_weight, self.value_proj_bias)
            read = partial(
                sample_values,
                weight=weight,
                bias=bias,
                locations=queries["sampling"][:, layers],
                attention=queries["attention"][:, layers],
            )
            read_s = read(self.scale("bev").restore(generated_bev.float()))
            with torch.no_grad():
                read_t = read(targets.bev.raw)
        elif self.fine == "cameras":
            read_s = sample_cameras(
                generated_pv,
                queries["points"][:, layers],
                queries["camera_weights"][:, layers],
                lidar2img(metas, targets.trust.device),
                metas[0]["pad_hw"],
            )
            read_t = queries["sampled"][:, layers].transpose(0, 1)
        else:
            return losses
        return losses | {"loss_fine": s.w_fine * fine_grained_loss(read_s, read_t, targets.trust)}

    def _generate(
        self, generator: nn.Module, name: str, student: Tensor, visible: Tensor, cells: Tensor | None
    ) -> Tensor:
        """The expert's standardised map ``name`` from the student's (N, C, H, W), seen where ``visible`` (N, H, W) is 1."""
        generated: Tensor = generator(student * visible[:, None], cells)
        if self.settings.residual:
            generated = generated + self.scale(name).standardise(student) * visible[:, None]
        return generated

    def _generate_pv(
        self, pv: list[Tensor], targets: ExpertTargets, metas: list[dict[str, Any]]
    ) -> tuple[list[Tensor], Tensor]:
        """Generated levels (B, V, C, Hl, Wl) in the expert's scale, and their summed error."""
        s, generated_pv, loss = self.settings, [], targets.trust.new_zeros(())
        positions = None
        if self.fine == "cameras" and any(generator.gathers for generator in self.pv_generators):
            positions = self._read_of_cameras(targets, metas)
        for slot, level in enumerate(self.levels):
            student, target, trust = pv[level], targets.pv[slot], targets.pv_trust[slot]
            self.check_grid(level, student, target)
            inside = trust.flatten(0, 1) > 0
            hidden = block_mask(inside, s.mask_ratio, s.block)
            cells = inside
            if positions is not None:
                cells = inside | sampling_neighbours(positions, self.schema.pv[level][:2])
            generated = self._generate(self.pv_generators[slot], f"pv/{level}", student, hidden, cells)
            loss = loss + masked_generation_loss(generated, target.flatten(0, 1), trust.flatten(0, 1))
            scale = self.scale(f"pv/{level}")
            generated_pv.append(scale.restore(generated.float()).unflatten(0, trust.shape[:2]))
        return generated_pv, loss

    def _needed_of_bev(self, targets: ExpertTargets) -> Tensor:
        """Cells of the generated BEV map that a loss reads, bool (B, H, W)."""
        assert targets.bev is not None and self.schema.bev is not None
        cells = targets.bev.trust > 0
        if self.fine != "bev":
            return cells
        trusted = targets.trust[:, None, :, None, None, None] > 0
        locations = torch.where(trusted, targets.queries["sampling"][:, list(self.layers)], _OUTSIDE)
        return cells | sampling_neighbours(locations.flatten(1, -2), self.schema.bev[:2])

    def _read_of_cameras(self, targets: ExpertTargets, metas: list[dict[str, Any]]) -> Tensor:
        """Positions in the cameras that trusted queries read, (B*V, L*K, 2) in 0..1 of the padded image."""
        layers, queries = list(self.layers), targets.queries
        uv = camera_positions(queries["points"][:, layers], lidar2img(metas, targets.trust.device), metas[0]["pad_hw"])
        weights = queries["camera_weights"][:, layers].amax(-1) * targets.trust[:, None, :, None]  # (B, L, K, V)
        seen = weights.permute(0, 3, 1, 2).flatten(2) > 0
        return torch.where(seen[..., None], uv, _OUTSIDE).flatten(0, 1)


def lidar2img(metas: list[dict[str, Any]], device: torch.device) -> Tensor:
    """Projections of a batch's current frames, (B, V, 4, 4)."""
    return torch.stack([torch.as_tensor(meta["lidar2img"]) for meta in metas]).to(device)
