"""FD3D around any student detector: taps, generators and the three losses, fed from the store."""

from typing import Any

import torch
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample
from mmengine.model import BaseModel
from torch import Tensor, nn

from pipeline.errors import FD3DError
from pipeline.focal import FocalRule
from store_schema import StoreReader

from .generators import FeatureGenerator, RestoreBEV
from .losses import block_mask, fine_grained_loss, masked_generation_loss
from .sampling import sample_values
from .settings import DistillSettings
from .targets import ChannelScale, ExpertTargets, make_targets


class Taps:
    """Outputs of modules by name, kept from the last forward pass until they are read.

    Args:
        model: holds the modules.
        paths: module path by name.
    """

    def __init__(self, model: nn.Module, paths: dict[str, str]) -> None:
        self.seen: dict[str, Any] = {}
        for name, path in paths.items():
            try:
                module = model.get_submodule(path)
            except AttributeError as error:
                raise FD3DError(f"the student has no module '{path}' to tap as {name}") from error
            module.register_forward_hook(self._keep(name))

    def _keep(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            self.seen[name] = output

        return hook

    def read(self, name: str) -> Any:
        """The last output, which is then forgotten.

        Raises:
            FD3DError: the module did not run.
        """
        if name not in self.seen:
            raise FD3DError(f"the student's tap '{name}' saw nothing; does its module run in training?")
        return self.seen.pop(name)


@MODELS.register_module()
class FocalDistiller(BaseModel):
    """A student with FD3D's losses added to its own; generators and restoring exist in training only.

    Args:
        student: detector config.
        store: finished store of the expert's targets.
        settings: :class:`DistillSettings` as plain values.
        bev_size: rows and columns of the student's BEV map.
        bev_channels, pv_channels: of the student's features.
        taps: module paths of the student's pyramid and BEV map.

    Raises:
        FD3DError: a setting needs what the store does not cover.
    """

    def __init__(
        self,
        student: dict,
        store: str,
        settings: dict[str, Any],
        bev_size: tuple[int, int],
        bev_channels: int,
        pv_channels: int,
        taps: dict[str, str] | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.student = MODELS.build(student)
        self.data_preprocessor = self.student.data_preprocessor
        self.settings = DistillSettings.from_dict(settings)
        reader = StoreReader(store)
        self.schema, self.manifest = reader.schema, reader.manifest
        check_store_covers(self.manifest, self.settings.rule)
        self.levels = tuple(range(len(self.schema.pv))) if self.settings.levels is None else self.settings.levels
        self.layers = tuple(range(self.schema.layers)) if self.settings.layers is None else self.settings.layers
        for name, chosen, count in (
            ("levels", self.levels, len(self.schema.pv)),
            ("layers", self.layers, self.schema.layers),
        ):
            if not chosen or min(chosen) < 0 or max(chosen) >= count:
                raise FD3DError(f"distill.{name} is {list(chosen)}, but the store has {name} 0..{count - 1}")
        height, width, channels = self.schema.bev
        self.bev_size = (bev_size[0], bev_size[1])
        self.restore = RestoreBEV(bev_channels, self.bev_size, (height, width))
        self.bev_generator = FeatureGenerator(bev_channels, channels)
        self.pv_generators = nn.ModuleList(FeatureGenerator(pv_channels, self.schema.pv[i][2]) for i in self.levels)
        kept_layers = list(self.layers)
        for name in ("weight", "bias"):
            constant = torch.from_numpy(reader.constants[f"decoder/value_proj_{name}"][kept_layers])
            self.register_buffer(f"value_{name}", constant, persistent=False)
        self.taps = Taps(self.student, taps or {"pv": "img_neck", "bev": "pts_bbox_head.transformer.encoder"})

    def student_state_dict(self) -> dict[str, Tensor]:
        """The plain detector's state dict."""
        return self.student.state_dict()

    def forward(self, inputs: dict[str, Tensor], data_samples: list[Det3DDataSample], mode: str = "tensor") -> Any:
        """As mmengine's models; ``loss`` adds loss_pv, loss_bev and loss_fine to the student's terms."""
        if mode != "loss":
            return self.student(inputs, data_samples, mode=mode)
        losses = self.student(inputs, data_samples, mode="loss")
        bev = self.taps.read("bev").transpose(1, 2).unflatten(-1, self.bev_size)
        pv = self.taps.read("pv")
        metas = [sample.frames[-1] for sample in data_samples]
        targets = self.targets([sample.expert for sample in data_samples], metas, bev.device)
        return losses | self.distillation_losses(bev, pv, targets)

    def targets(self, frames: list[Any], metas: list[dict[str, Any]], device: torch.device) -> ExpertTargets:
        """Dense targets of a batch of cached frames."""
        s = self.settings
        return make_targets(
            frames, metas, self.schema, self.manifest, s.rule, s.trust_threshold, s.trust_power, self.levels, device
        )

    def distillation_losses(self, bev: Tensor, pv: tuple[Tensor, ...], targets: ExpertTargets) -> dict[str, Tensor]:
        """The three weighted losses.

        Args:
            bev: the student's map (B, C, h, w).
            pv: its pyramid, levels (B*V, C, Hl, Wl).

        Raises:
            FD3DError: a level's grid is not the expert's.
        """
        s = self.settings
        loss_pv = bev.new_zeros(())
        for slot, level in enumerate(self.levels):
            student, target, trust = pv[level], targets.pv[slot], targets.pv_trust[slot]
            if student.shape[-2:] != target.shape[-2:]:
                have, want = tuple(student.shape[-2:]), tuple(target.shape[-2:])
                raise FD3DError(
                    f"pyramid level {level} of the student is {have}, of the expert {want}; choose image sizes and strides that agree"
                )
            hidden = block_mask(trust.flatten(0, 1) > 0, s.mask_ratio, s.block)
            generated = self.pv_generators[slot](student * hidden[:, None])
            loss_pv = loss_pv + masked_generation_loss(generated, target.flatten(0, 1), trust.flatten(0, 1))
        restored = self.restore(bev)
        hidden = block_mask(targets.bev_trust > 0, s.mask_ratio, s.block)
        generated = self.bev_generator(restored * hidden[:, None])
        loss_bev = masked_generation_loss(generated, targets.bev, targets.bev_trust)
        scale = ChannelScale.from_manifest(self.manifest["statistics"]["bev"], bev.device)
        layers = list(self.layers)
        locations, attention = targets.sampling[:, layers], targets.attention[:, layers]
        read_s = sample_values(
            scale.restore(generated.float()), self.value_weight, self.value_bias, locations, attention
        )
        with torch.no_grad():
            read_t = sample_values(targets.bev_raw, self.value_weight, self.value_bias, locations, attention)
        loss_fine = fine_grained_loss(read_s, read_t, targets.trust)
        return {"loss_pv": s.w_pv * loss_pv, "loss_bev": s.w_bev * loss_bev, "loss_fine": s.w_fine * loss_fine}


def check_store_covers(manifest: dict[str, Any], rule: FocalRule) -> None:
    """Refuse areas that need cells which the store lacks; a dense store covers every margin.

    Raises:
        FD3DError: naming the setting and what the store covers.
    """
    stored = FocalRule(**manifest["focal"])
    if manifest["schema"]["layout"] == "dense":
        stored = FocalRule(stored.num_queries, 0.0, float("inf"), float("inf"))
    stored.check_covers(rule)
