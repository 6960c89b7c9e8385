"""Base of all distillers: a tapped student, a store of targets, losses added to the student's."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample
from mmengine.model import BaseModel
from torch import Tensor, nn

from pipeline.errors import FD3DError
from pipeline.expert.adapted import AdaptedPreprocessor, Untouched
from pipeline.expert.adapters import first_tensor
from pipeline.focal.codes import FeatureCode
from store_schema import StoreReader

from .generators import RestoreBEV
from .planned import PlannedStore
from .settings import MethodSettings
from .stored import CachedFrame
from .targets import ChannelScale

if TYPE_CHECKING:
    from .online import OnlineExpert

# module paths of the outputs to tap, in students of this repository
_TAPS = {"pv": "img_neck", "bev": "pts_bbox_head.transformer.encoder", "head": "pts_bbox_head"}


class Taps:
    """Outputs of modules by name, kept from the last forward pass until they are read.

    Args:
        model: detector with the modules.
        paths: module path by name.

    Raises:
        FD3DError: the model lacks a module.
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
        """Last output of the tap, which is then forgotten.

        Raises:
            FD3DError: the module did not run.
        """
        if name not in self.seen:
            raise FD3DError(f"the student's tap '{name}' saw nothing; does its module run in training?")
        return self.seen.pop(name)

    def forget(self) -> None:
        """Let go of the outputs that nothing has read."""
        self.seen.clear()


@dataclass
class StudentOutputs:
    """Outputs of the student's last training pass, as far as the distiller taps them.

    Attributes:
        pv: pyramid levels (B*V, C, Hl, Wl) of the current frame; empty where they are not distilled.
        bev: map (B, C, h, w), None without one on both sides.
        head: output of the detection head, None where no loss reads it.
    """

    pv: list[Tensor]
    bev: Tensor | None
    head: Any


class Distiller(BaseModel):
    """Student with distillation losses added to the student's own; all other modules exist in training only.

    A method is a subclass that names its ``settings_type`` and gives ``distillation_losses``.

    Args:
        student: detector config.
        store: finished store of the expert's targets, or one that is yet to be dumped, for a look at the settings alone.
        settings: settings of the method, as plain values.
        bev_size: rows and columns of the student's BEV map; None for a student without one.
        bev_channels, pv_channels: channels of the student's BEV map and pyramid; ``pv_channels`` is 0 for a student without a
            pyramid.
        taps: module paths of the student's pyramid ``pv``, BEV map ``bev`` and detection head ``head``, where the
            paths are not those of this repository's detectors.
        expert: ``config`` and ``checkpoint`` of the expert, for the setting ``expert: online``.

    Attributes:
        settings: settings of the method.
        schema, manifest, constants: schema, manifest and constants of the store.
        levels: pyramid levels that are distilled.
        scaled: maps whose channel statistics :meth:`scale` knows.
        adapted: whether the student is a detector of another project, which takes batches through its adapter.
        bev_size: as above, None when expert or student has no BEV map.
        distils: whether losses are computed; :meth:`begin_update` sets it for an update.
        restore: module that brings the student's BEV map to the expert's size; absent without ``bev_size``.

    Raises:
        FD3DError: a setting needs what the store lacks, or the two sides have nothing in common.
    """

    settings_type: ClassVar[type[MethodSettings]]
    reads_maps: ClassVar[bool] = True
    """Whether the losses compare pyramids and BEV maps."""
    reads_head: ClassVar[bool] = False
    """Whether the losses read the output of the student's detection head."""

    def __init__(
        self,
        student: dict,
        store: str | PlannedStore,
        settings: dict[str, Any],
        bev_size: tuple[int, int] | None,
        bev_channels: int,
        pv_channels: int,
        taps: dict[str, str] | None = None,
        expert: dict[str, str] | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.student = MODELS.build(student)
        self.adapted = isinstance(self.student.data_preprocessor, AdaptedPreprocessor)
        self.data_preprocessor = Untouched() if self.adapted else self.student.data_preprocessor
        self.settings: Any = self.settings_type.from_dict(settings)
        self.distils = True
        reader = store if isinstance(store, PlannedStore) else StoreReader(store)
        self.store, self.schema, self.manifest = store, reader.schema, reader.manifest
        self.constants, self.stored_codes = reader.constants, reader.codes
        self._codes = nn.ModuleDict({name: FeatureCode(code) for name, code in reader.codes.items()})
        self.online: OnlineExpert | None = None
        if self.settings.expert == "online":
            self.online = self._online(expert)
        self.levels: tuple[int, ...] = ()
        self.bev_size: tuple[int, int] | None = None
        if self.reads_maps:
            self.levels = () if not pv_channels else self.chosen("levels", len(self.schema.pv))
            if self.schema.bev and bev_size is not None:
                self.bev_size = (bev_size[0], bev_size[1])
                self.restore = RestoreBEV(bev_channels, self.bev_size, self.schema.bev[:2], self.restores_residually)
            if not self.levels and self.bev_size is None:
                raise FD3DError(
                    f"store {store} includes no pyramid, and expert or student has no BEV map: nothing to distil"
                )
        # buffers, so that a step makes no tensors of them; not saved, since the store has them
        self.scaled = [f"pv/{level}" for level in self.levels] + (["bev"] if self.schema.bev else [])
        for name in self.scaled:
            for kind, values in self.manifest["statistics"][name].items():
                tensor = torch.tensor(values, dtype=torch.float32)
                self.register_buffer(f"{kind}_{name.replace('/', '_')}", tensor, persistent=False)
        needed = {"pv": bool(self.levels), "bev": self.bev_size is not None, "head": self.reads_head}
        paths = _TAPS | (taps or {})
        self.taps = Taps(self.student, {name: path for name, path in paths.items() if needed[name]})

    @property
    def codes(self) -> dict[str, FeatureCode]:
        """Codes by map, on this module's device; empty for a store whose features are not coded."""
        return {name: code for name, code in self._codes.items() if isinstance(code, FeatureCode)}

    @property
    def restores_residually(self) -> bool:
        """Whether the restored BEV map starts as the student's, interpolated."""
        return False

    def _online(self, expert: dict[str, str] | None) -> "OnlineExpert":
        if expert is None:
            raise FD3DError(
                f"{self.settings.section}.expert is online, but no expert is given; name the config and checkpoint of one"
            )
        from .online import OnlineExpert  # here, so that training from the store needs nothing of the expert

        return OnlineExpert(
            **expert, manifest=self.manifest, schema=self.schema, codes=self.stored_codes, store=self.store
        )

    def chosen(self, name: str, count: int, holder: str = "the store") -> tuple[int, ...]:
        """Numbers of the holder's ``count`` levels or layers that the setting ``name`` chooses; None chooses all.

        Raises:
            FD3DError: the holder lacks a chosen level or layer.
        """
        numbers = getattr(self.settings, name)
        numbers = tuple(range(count)) if numbers is None else numbers
        if (count and not numbers) or any(not 0 <= number < count for number in numbers):
            held = f"{name} 0..{count - 1}" if count else f"no {name}"
            raise FD3DError(f"{self.settings.section}.{name} is {list(numbers)}, but {holder} has {held}")
        return numbers

    def student_state_dict(self) -> dict[str, Tensor]:
        """The plain detector's state dict."""
        return self.student.state_dict()

    def forward(self, inputs: dict[str, Tensor], data_samples: list[Det3DDataSample], mode: str = "tensor") -> Any:
        """Forward pass as of mmengine's models; ``loss`` adds the distillation losses to the student's terms."""
        if mode != "loss":
            return self.student(inputs, data_samples, mode=mode)
        given = {"inputs": inputs, "data_samples": data_samples}
        if self.adapted:  # the losses below need the data's samples as they are
            given = self.student.data_preprocessor(given, True)
        losses = self.student(**given, mode="loss")
        if not self.distils:
            self.taps.forget()
            return losses
        frames = self.expert_frames(inputs, data_samples)
        found = self.distillation_losses(self.student_outputs(), frames, data_samples)
        self.taps.forget()  # of another pass that a loss made
        return losses | {name: self.settings.every * loss for name, loss in found.items()}

    def begin_update(self, number: int) -> None:
        """Distil in update ``number``, from 0 on, or leave it a plain one, as the setting ``every`` says."""
        self.distils = number % self.settings.every == 0

    def facts(self) -> dict[str, Any]:
        """Plain values for ``train.json`` that the method knows after a training."""
        return {}

    def expert_frames(self, inputs: dict[str, Tensor], data_samples: list[Det3DDataSample]) -> list[CachedFrame]:
        """Rows of the expert for every sample's current frame: read from the store by the data pipeline, or made now by an
        online expert from the frames that the data pipeline has decoded."""
        loaded = [sample.expert for sample in data_samples]
        return loaded if self.online is None else self.online.rows(loaded)

    def student_outputs(self) -> StudentOutputs:
        """Tapped outputs of the student's last pass, which are then forgotten."""
        pv = self.taps.read("pv") if self.levels else []
        bev = first_tensor(self.taps.read("bev")) if self.bev_size else None
        if bev is not None and bev.dim() == 3:  # (B, H*W, C) of this repository's encoder
            bev = bev.transpose(1, 2).unflatten(-1, self.bev_size)
        return StudentOutputs(
            pv=[pv] if isinstance(pv, Tensor) else list(pv),
            bev=bev,
            head=self.taps.read("head") if self.reads_head else None,
        )

    def distillation_losses(
        self, outputs: StudentOutputs, frames: list[CachedFrame], data_samples: list[Det3DDataSample]
    ) -> dict[str, Tensor]:
        """The weighted losses by name.

        Args:
            outputs: tapped outputs of the student.
            frames: per sample the expert's arrays by the store's names, features decoded or not.
            data_samples: with ``frames``, metainfo of the student's queue whose last entry is the current frame (lidar2img to
                its unpadded image, pad_hw), and ``gt_instances_3d``.
        """
        raise NotImplementedError

    def check_grid(self, level: int, student: Tensor, expert: Tensor) -> None:
        """Refuse pyramid levels whose cells do not lie on each other.

        Raises:
            FD3DError: rows or columns differ.
        """
        have, want = tuple(student.shape[-2:]), tuple(expert.shape[-2:])
        if have != want:
            raise FD3DError(
                f"pyramid level {level} of the student is {have}, of the expert {want}; choose image sizes and strides that agree"
            )

    def scale(self, name: str) -> ChannelScale:
        """Channel statistics of the expert's map ``bev`` or ``pv/LEVEL``, on this module's device."""
        mean, std = (self.get_buffer(f"{kind}_{name.replace('/', '_')}") for kind in ("mean", "std"))
        return ChannelScale(mean, std)
