"""FD3D around any student detector: generators and the three losses, fed from the store (Zeng et al., CVPR 2023)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample
from torch import Tensor, nn

from pipeline.errors import FD3DError
from pipeline.focal.rule import FocalRule
from pipeline.models.detector import gt_tensors

from ..base import Distiller, StudentOutputs
from ..cells import Cells, rows_of, select
from ..generators import FeatureGenerator, Reader, start_at_zero
from ..geometry import object_grid
from ..head import DistillationHead
from ..losses import block_mask, fine_grained_loss, masked_generation_loss, query_trust, relation_loss
from ..mixing import MixingGate, check_mixed, loss_on_mixed
from ..sampling import Reading, bev_reading, camera_positions, camera_reading, project_values
from ..settings import DistillSettings
from ..stored import CachedFrame, dense_bev
from ..targets import CellTargets, ExpertTargets, Spans, make_targets


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
        if self.schema.bev:
            x0, y0, _, x1, y1, _ = self.manifest["coordinates"]["pc_range"]
            cell = max((x1 - x0) / self.schema.bev[1], (y1 - y0) / self.schema.bev[0])
            self.settings.geometry.check_reach(self.settings.rule, stored, cell)
        self.head = self._trainable_head(kwargs["student"].get("pts_bbox_head"))
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
        if self.settings.w_mixed:
            check_mixed(self.schema, self.levels, self.adapted, pv_channels)
            self.mixing = MixingGate(self.settings.mixed_limit if self.settings.w_pv else 0.0)
        if self.schema.bev and self.bev_size is not None:
            self.bev_generator = FeatureGenerator(bev_channels, self.schema.bev[2])
        self.pv_generators = nn.ModuleList(FeatureGenerator(pv_channels, self.schema.pv[i][2]) for i in self.levels)
        if self.settings.residual:
            self._start_as_identity(bev_channels, pv_channels)
        for path, constant in self.constants.items() if self.head is None else ():
            if path.startswith("decoder/"):
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

    def _trainable_head(self, student_head: dict[str, Any] | None) -> DistillationHead | None:
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
        if self.adapted or student_head is None:
            raise FD3DError("distill.head is trainable, which is for students of this project; set head to frozen")
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
        if self.schema.reading == "cameras" and not self.levels:
            return "none"
        if self.schema.reading == "cameras" and len(self.levels) < len(self.schema.pv):
            raise FD3DError(
                f"distill.levels is {list(self.levels)}, but the expert's queries read all {len(self.schema.pv)} levels; "
                "take all, or set distill.w_fine to 0"
            )
        return self.schema.reading

    def begin_update(self, number: int) -> None:
        """See :class:`~pipeline.distill.base.Distiller`; whether the head learns on mixed pyramids is judged here too."""
        super().begin_update(number)
        if self.settings.w_mixed:
            self.mixing.begin_update(number)

    def facts(self) -> dict[str, Any]:
        """See :class:`~pipeline.distill.base.Distiller`; how long mixing paused, where ``mixed_limit`` is set."""
        return self.mixing.facts() if self.settings.w_mixed else {}

    def distillation_losses(
        self, outputs: StudentOutputs, frames: list[CachedFrame], data_samples: list[Det3DDataSample]
    ) -> dict[str, Tensor]:
        """loss_pv, loss_bev and loss_fine, as far as both sides allow; with a trainable head also loss_head, and loss_mixed where
        it has weight."""
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
            losses = self.focal_losses(outputs.bev, outputs.pv, targets, metas)
        else:
            found = self.head(torch.stack([dense_bev(frame, self.schema, device)[0] for frame in frames]), *truth)
            trust = query_trust(found.score, max(s.trust_threshold, s.rule.min_score), s.trust_power)
            if spans is None:
                spans = [Spans(*span) for span in zip(found.boxes, trust, strict=True)]
            targets = self.targets(frames, metas, device, spans)
            queries = {"sampling": found.sampling, "attention": found.attention}
            targets = replace(targets, trust=trust, placed=trust, queries=queries)
            layers = list(self.layers)
            projection = found.value_weight[layers], found.value_bias[layers]
            losses = self.focal_losses(outputs.bev, outputs.pv, targets, metas, projection)
            losses["loss_head"] = s.w_head * found.loss
        if s.w_mixed and self.mixing.closed:  # 0 rather than nothing, or logs would go on with the last values
            losses["loss_mixed"] = targets.trust.new_zeros(())
        elif s.w_mixed:
            losses["loss_mixed"] = s.w_mixed * loss_on_mixed(self, outputs, targets, data_samples, truth)
        return losses

    def targets(
        self,
        frames: list[CachedFrame],
        metas: list[dict[str, Any]],
        device: torch.device,
        spans: Sequence[Spans | None] | None = None,
        truth: tuple[list[Tensor], list[Tensor]] | None = None,
    ) -> ExpertTargets:
        """Targets of a batch of cached frames; ``spans``, ``truth`` as of :func:`~pipeline.distill.targets.make_targets`."""
        scales = {name: self.scale(name) for name in self.scaled}
        pc_range = self.manifest["coordinates"]["pc_range"]
        return make_targets(
            frames, metas, self.schema, scales, pc_range, self.settings, self.levels, device, spans, truth, self.codes
        )

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
        maps: dict[str, tuple[Any, Reader, CellTargets]] = {}  # generator, reader of the student's maps, targets
        for slot, level in enumerate(self.levels):
            self.check_grid(level, pv[level], targets.pv[slot].cells.mask)
            maps[f"pv/{level}"] = self.pv_generators[slot], partial(rows_of, pv[level]), targets.pv[slot]
        if bev is not None and targets.bev is not None:
            maps["bev"] = self.bev_generator, self.restore.reader(bev), targets.bev
        readings = self._readings(targets.queries | targets.student, targets, metas)
        relations = self._relation_reading(targets)
        errors: dict[str, Tensor] = {}
        sums: dict[str, Tensor] = {}
        for name, (generator, read, target) in maps.items():
            reading, scale = readings.get(name), self.scale(name)
            inside, size = target.cells.mask, tuple(target.cells.mask.shape)
            needed = inside if reading is None else inside | reading.mask(targets.placed, size)
            if name == "bev" and relations is not None:
                needed = needed | relations[0].mask(targets.placed, size)
            cells = target.cells if needed is inside else Cells(needed)
            visible = block_mask(inside, s.mask_ratio, s.block) > 0
            generated = generator.at(read, visible, cells)
            if s.residual:
                own = scale.standardise_rows(read(cells))
                generated = generated + own * visible.flatten()[cells.index, None]
            compared = select(generated, cells, target.cells)
            errors[name] = masked_generation_loss(compared, target.values, target.weight)
            if reading is not None:
                sums[name] = reading.of(scale.restore_rows(generated.float()), cells.row_of_all)
            if name == "bev" and relations is not None:
                errors["relation"] = self._relation_error(relations, generated, cells, targets)
        # what annotations leave no trust must not let the rest weigh more
        share = 1.0 if targets.share is None else targets.share
        losses: dict[str, Tensor] = {}
        if self.levels:
            pyramid = torch.stack([errors[f"pv/{level}"] for level in self.levels])
            losses["loss_pv"] = s.w_pv * pyramid.sum()
            if s.w_mixed and self.mixing.limit:
                means = [masked_generation_loss(torch.zeros_like(t.values), t.values, t.weight) for t in targets.pv]
                self.mixing.see(pyramid, torch.stack(means))
        if "bev" in errors:
            losses["loss_bev"] = s.w_bev * share * errors["bev"]
        if readings:
            read_s, read_t = self._what_queries_saw(sums, readings, targets, projection)
            losses["loss_fine"] = s.w_fine * share * fine_grained_loss(read_s, read_t, targets.placed)
        if "relation" in errors:
            losses["loss_relation"] = s.geometry.w_relation * share * errors["relation"]
        return losses

    def _readings(
        self, positions: Mapping[str, Tensor], targets: ExpertTargets, metas: list[dict[str, Any]]
    ) -> dict[str, Reading]:
        """What queries read by map; ``positions`` as the targets' ``queries``, with the positions on the maps that are read."""
        layers, queries = list(self.layers), targets.queries
        if self.fine == "bev" and self.schema.bev is not None:
            return {"bev": self._bev_reading(positions, targets)}
        if self.fine == "cameras":
            weights, cameras = queries["camera_weights"][:, layers], lidar2img(metas, targets.trust.device)
            pixels = camera_positions(positions["points"][:, layers], cameras, metas[0]["pad_hw"])
            return {
                f"pv/{level}": camera_reading(pixels, weights[..., level], self.schema.pv[level][:2])
                for level in self.levels
            }
        return {}

    def _bev_reading(self, positions: Mapping[str, Tensor], targets: ExpertTargets) -> Reading:
        assert self.schema.bev is not None
        layers = list(self.layers)
        attention = targets.queries["attention"][:, layers]
        return bev_reading(positions["sampling"][:, layers], attention, self.schema.bev[:2])

    def _relation_reading(self, targets: ExpertTargets) -> tuple[Reading, Reading] | None:
        """Readings (B, 1, K, 9, 4) of the places inside objects, on the student's map and on the expert's."""
        if not self.settings.geometry.w_relation or not targets.anchors or self.schema.bev is None:
            return None
        places = [object_grid(anchors.target) for anchors in targets.anchors]
        there = [anchors.to_source(grid) for anchors, grid in zip(targets.anchors, places, strict=True)]
        pc_range = targets.trust.new_tensor(self.manifest["coordinates"]["pc_range"])
        low, extent = pc_range[:2], pc_range[3:5] - pc_range[:2]
        ours, theirs = ((torch.stack(grids)[:, None, :, :, None] - low) / extent for grids in (places, there))
        weight = torch.ones_like(ours[..., 0])
        size = self.schema.bev[:2]
        return bev_reading(ours, weight, size), bev_reading(theirs, weight, size)

    def _relation_error(
        self, relations: tuple[Reading, Reading], generated: Tensor, cells: Cells, targets: ExpertTargets
    ) -> Tensor:
        """:func:`~pipeline.distill.losses.relation_loss` of the matched queries' objects."""
        assert targets.bev_read is not None and targets.anchors is not None
        ours = relations[0].of(generated.float(), cells.row_of_all)
        with torch.no_grad():
            values = self.scale("bev").standardise_rows(targets.bev_read.values)
            theirs = relations[1].of(values, targets.bev_read.row)
        matched = torch.stack([anchors.matched for anchors in targets.anchors])
        return relation_loss(ours[:, 0], theirs[:, 0], targets.placed * matched)

    def _what_queries_saw(
        self,
        sums: dict[str, Tensor],
        readings: dict[str, Reading],
        targets: ExpertTargets,
        projection: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        """Values that queries read on the student's and on the expert's maps, (L, B, K, C) each.

        Args:
            sums: the student's features that queries read, by map: (B, L, K, M, C) of the BEV map, (B, L, K, C) of a level.
            projection: as of :meth:`focal_losses`.
        """
        if self.fine == "cameras":
            sampled = targets.queries["sampled"][:, list(self.layers)]
            return torch.stack(list(sums.values())).sum(0).transpose(0, 1), sampled.transpose(0, 1)
        assert targets.bev_read is not None
        weight, bias = projection or (self.value_proj_weight, self.value_proj_bias)
        project = partial(project_values, weight=weight, bias=bias)
        theirs = self._bev_reading(targets.queries, targets) if targets.student else readings["bev"]
        with torch.no_grad():
            read_t = project(theirs.of(targets.bev_read.values, targets.bev_read.row), theirs.share.sum(-1))
        return project(sums["bev"], readings["bev"].share.sum(-1)), read_t


def lidar2img(metas: list[dict[str, Any]], device: torch.device) -> Tensor:
    """Projections of a batch's current frames, (B, V, 4, 4)."""
    return torch.stack([torch.as_tensor(meta["lidar2img"]) for meta in metas]).to(device)
