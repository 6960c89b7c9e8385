"""FD3D around any student detector: taps, generators and the three losses, fed from the store."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample
from mmengine.config import Config
from mmengine.model import BaseModel
from torch import Tensor, nn

from pipeline.errors import FD3DError
from pipeline.focal import FocalRule
from store_schema import StoreReader

from .generators import FeatureGenerator, RestoreBEV
from .losses import block_mask, fine_grained_loss, masked_generation_loss
from .sampling import sample_cameras, sample_values
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


def distiller_config(cfg: Config, store: str | Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What builds a :class:`FocalDistiller` around an apprentice.

    Args:
        cfg: the apprentice's config.
        store: the expert's targets.
        settings: of :class:`DistillSettings`.

    Raises:
        FD3DError: a setting is unknown or out of range.
    """
    DistillSettings.from_dict(settings)
    head = cfg.model.pts_bbox_head
    return dict(
        type="FocalDistiller",
        student=cfg.model,
        store=str(store),
        settings=settings,
        bev_size=(head.bev_h, head.bev_w) if "bev_h" in head else None,
        bev_channels=head.get("embed_dims", 256),
        pv_channels=cfg.model.img_neck.out_channels,
    )


@MODELS.register_module()
class FocalDistiller(BaseModel):
    """A student with FD3D's losses added to its own; generators and restoring exist in training only.

    Args:
        student: detector config.
        store: finished store of the expert's targets.
        settings: :class:`DistillSettings` as plain values.
        bev_size: rows and columns of the student's BEV map; None for a student without one.
        bev_channels, pv_channels: of the student's features.
        taps: module paths of the student's pyramid and BEV map.

    A loss exists where both sides have what it compares: loss_pv with a stored pyramid, loss_bev with two BEV maps,
    loss_fine with what queries read on the BEV map (BEVFormer) or from the cameras (DETR3D).

    Raises:
        FD3DError: a setting needs what the store does not cover, or the two sides have nothing in common.
    """

    def __init__(
        self,
        student: dict,
        store: str,
        settings: dict[str, Any],
        bev_size: tuple[int, int] | None,
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
            if (count and not chosen) or any(not 0 <= number < count for number in chosen):
                held = f"{name} 0..{count - 1}" if count else f"no {name}"
                raise FD3DError(f"distill.{name} is {list(chosen)}, but the store has {held}")
        self.fine = self._what_queries_read(bev_size is not None)
        self.bev_size = None
        if self.schema.bev and bev_size is not None:
            height, width, channels = self.schema.bev
            self.bev_size = (bev_size[0], bev_size[1])
            self.restore = RestoreBEV(bev_channels, self.bev_size, (height, width))
            self.bev_generator = FeatureGenerator(bev_channels, channels)
        if not self.levels and self.bev_size is None:
            raise FD3DError(f"store {store} holds no pyramid, and expert or student has no BEV map: nothing to distil")
        self.pv_generators = nn.ModuleList(FeatureGenerator(pv_channels, self.schema.pv[i][2]) for i in self.levels)
        for path, constant in reader.constants.items():
            name = path.removeprefix("decoder/")
            self.register_buffer(name, torch.from_numpy(constant[list(self.layers)]), persistent=False)
        paths = taps or {"pv": "img_neck", "bev": "pts_bbox_head.transformer.encoder"}
        needed = {"pv": bool(self.levels), "bev": self.bev_size is not None}
        self.taps = Taps(self.student, {name: path for name, path in paths.items() if needed[name]})

    def _what_queries_read(self, student_has_bev: bool) -> str:
        """``bev`` or ``cameras`` where the fine-grained loss is possible and wanted, else ``none``.

        Raises:
            FD3DError: the expert's queries read levels that are not distilled.
        """
        if not self.settings.w_fine or (self.schema.reading == "bev" and not student_has_bev):
            return "none"
        if self.schema.reading == "cameras" and len(self.levels) < len(self.schema.pv):
            raise FD3DError(
                f"distill.levels is {list(self.levels)}, but the expert's queries read all {len(self.schema.pv)} levels; "
                "take all, or set distill.w_fine to 0"
            )
        return self.schema.reading

    def student_state_dict(self) -> dict[str, Tensor]:
        """The plain detector's state dict."""
        return self.student.state_dict()

    def forward(self, inputs: dict[str, Tensor], data_samples: list[Det3DDataSample], mode: str = "tensor") -> Any:
        """As mmengine's models; ``loss`` adds loss_pv, loss_bev and loss_fine to the student's terms."""
        if mode != "loss":
            return self.student(inputs, data_samples, mode=mode)
        losses = self.student(inputs, data_samples, mode="loss")
        pv = list(self.taps.read("pv")) if self.levels else []
        bev = self.taps.read("bev").transpose(1, 2).unflatten(-1, self.bev_size) if self.bev_size else None
        metas = [sample.frames[-1] for sample in data_samples]
        device = inputs["img"].device
        targets = self.targets([sample.expert for sample in data_samples], metas, device)
        return losses | self.distillation_losses(bev, pv, targets, metas)

    def targets(self, frames: list[Any], metas: list[dict[str, Any]], device: torch.device) -> ExpertTargets:
        """Dense targets of a batch of cached frames."""
        s = self.settings
        return make_targets(
            frames, metas, self.schema, self.manifest, s.rule, s.trust_threshold, s.trust_power, self.levels, device
        )

    def distillation_losses(
        self, bev: Tensor | None, pv: list[Tensor], targets: ExpertTargets, metas: list[dict[str, Any]]
    ) -> dict[str, Tensor]:
        """The weighted losses that both sides allow.

        Args:
            bev: the student's map (B, C, h, w), None where one side has none.
            pv: its pyramid, levels (B*V, C, Hl, Wl); empty where the store has none.
            metas: per sample the metainfo of the student's current frame.

        Raises:
            FD3DError: a level's grid is not the expert's.
        """
        s = self.settings
        losses: dict[str, Tensor] = {}
        if self.levels:
            generated_pv, loss = self._generate_pv(pv, targets)
            losses["loss_pv"] = s.w_pv * loss
        if bev is not None and targets.bev is not None:
            hidden = block_mask(targets.bev.trust > 0, s.mask_ratio, s.block)
            generated_bev = self.bev_generator(self.restore(bev) * hidden[:, None])
            losses["loss_bev"] = s.w_bev * masked_generation_loss(
                generated_bev, targets.bev.standardised, targets.bev.trust
            )
        layers, queries = list(self.layers), targets.queries
        if self.fine == "bev" and targets.bev is not None:
            read = partial(
                sample_values,
                weight=self.value_proj_weight,
                bias=self.value_proj_bias,
                locations=queries["sampling"][:, layers],
                attention=queries["attention"][:, layers],
            )
            read_s = read(self._scale("bev", targets.trust.device).restore(generated_bev.float()))
            with torch.no_grad():
                read_t = read(targets.bev.raw)
        elif self.fine == "cameras":
            read_s = sample_cameras(
                generated_pv,
                queries["points"][:, layers],
                queries["camera_weights"][:, layers],
                torch.stack([torch.as_tensor(meta["lidar2img"]) for meta in metas]).to(targets.trust.device),
                metas[0]["pad_hw"],
            )
            read_t = queries["sampled"][:, layers].transpose(0, 1)
        else:
            return losses
        return losses | {"loss_fine": s.w_fine * fine_grained_loss(read_s, read_t, targets.trust)}

    def _generate_pv(self, pv: list[Tensor], targets: ExpertTargets) -> tuple[list[Tensor], Tensor]:
        """Generated levels (B, V, C, Hl, Wl) in the expert's scale, and their summed error."""
        s, generated_pv, loss = self.settings, [], targets.trust.new_zeros(())
        for slot, level in enumerate(self.levels):
            student, target, trust = pv[level], targets.pv[slot], targets.pv_trust[slot]
            if student.shape[-2:] != target.shape[-2:]:
                have, want = tuple(student.shape[-2:]), tuple(target.shape[-2:])
                raise FD3DError(
                    f"pyramid level {level} of the student is {have}, of the expert {want}; choose image sizes and strides that agree"
                )
            hidden = block_mask(trust.flatten(0, 1) > 0, s.mask_ratio, s.block)
            generated = self.pv_generators[slot](student * hidden[:, None])
            loss = loss + masked_generation_loss(generated, target.flatten(0, 1), trust.flatten(0, 1))
            scale = self._scale(f"pv/{level}", trust.device)
            generated_pv.append(scale.restore(generated.float()).unflatten(0, trust.shape[:2]))
        return generated_pv, loss

    def _scale(self, name: str, device: torch.device) -> ChannelScale:
        return ChannelScale.from_manifest(self.manifest["statistics"][name], device)


def check_store_covers(manifest: dict[str, Any], rule: FocalRule) -> None:
    """Refuse areas that need cells which the store lacks; a dense store covers every margin.

    Raises:
        FD3DError: naming the setting and what the store covers.
    """
    stored = FocalRule(**manifest["focal"])
    if manifest["schema"]["layout"] == "dense":
        stored = FocalRule(stored.num_queries, 0.0, float("inf"), float("inf"))
    stored.check_covers(rule)
