"""A frozen detector with hooks at its taps."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from mmdet3d.registry import TASK_UTILS
from mmdet3d.structures import Det3DDataSample
from mmengine.config import Config
from torch import nn

from pipeline.errors import FD3DError
from pipeline.models.detector import MultiCameraDetector

from .adapters import ExpertAdapter, Seen, submodule
from .declared import check_declared, foreign_errors
from .frame import ExpertFrame, check_frame

_DTYPES = {None: None, "bf16": torch.bfloat16, "fp16": torch.float16}


def build_adapter(cfg: Config) -> ExpertAdapter:
    """The adapter that a detector config names.

    Raises:
        FD3DError: the config names no adapter, or one that does not exist, or lacks what data are prepared by.
    """
    if lacking := [name for name in ("image", "pc_range") if cfg.get(name) is None]:
        raise FD3DError(
            f"config {cfg.filename} has no '{lacking[0]}', by which data are prepared; give image = dict(scale=1.0, to_rgb=True) and "
            "pc_range = [x0, y0, z0, x1, y1, z1]"
        )
    settings = cfg.get("adapter")
    if settings is None:
        raise FD3DError(
            f"config {cfg.filename} has no 'adapter'; say how the expert is tapped, for example adapter = "
            'dict(type="DetectorAdapter", bev="MODULE PATH")'
        )
    try:
        return TASK_UTILS.build(settings)
    except (KeyError, TypeError) as error:
        raise FD3DError(f"the adapter of config {cfg.filename} cannot be built: {error}") from error


def adapter_of(cfg: Config, model: nn.Module) -> ExpertAdapter:
    """The adapter that a detector config names, which does not contradict the detector.

    Raises:
        FD3DError: as of :func:`build_adapter` and :func:`~pipeline.expert.declared.check_declared`.
    """
    adapter = build_adapter(cfg)
    check_declared(adapter, model, cfg)
    return adapter


class TappedExpert:
    """Detector in evaluation mode that streams a scene's frames in order, read through an adapter.

    Args:
        model: frozen detector on its device.
        adapter: adapter through which the model is read.
        num_queries: K best queries kept.
        autocast: ``bf16`` or ``fp16`` on a GPU, None for float32.

    Raises:
        FD3DError: a tap's path leads nowhere, an unknown autocast type, or one without a GPU.
    """

    def __init__(self, model: nn.Module, adapter: ExpertAdapter, num_queries: int, autocast: str | None = None) -> None:
        if autocast not in _DTYPES:
            raise FD3DError(f"autocast is '{autocast}'; use bf16, fp16 or leave it out")
        self.model, self.adapter, self.num_queries = model, adapter, num_queries
        self.dtype = _DTYPES[autocast]
        self.device = next(model.parameters()).device
        if autocast and self.device.type == "cpu":
            raise FD3DError(
                f"the expert is to run in {autocast}, which needs a GPU; use a machine with one, or null for float32"
            )
        self.modules = {name: submodule(model, path) for name, path in adapter.taps(model).items()}

    @contextmanager
    def tapped(self) -> Iterator[Seen]:
        """Arguments and outputs of the tapped modules while the model runs inside the context."""
        seen: Seen = {}

        def keep(name: str) -> Any:
            def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
                seen[name] = (args, output)

            return hook

        hooks = [module.register_forward_hook(keep(name)) for name, module in self.modules.items()]
        try:
            yield seen
        finally:
            for hook in hooks:
                hook.remove()

    def _errors(self) -> AbstractContextManager[None]:
        own = isinstance(self.model, MultiCameraDetector)
        return nullcontext() if own else foreign_errors(self.adapter, self.model)

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, self.dtype) if self.dtype else nullcontext()

    @torch.no_grad()
    def advance(self, batch: dict[str, Any]) -> None:
        """One streamed step of which only the history is wanted: detectors that have ``stream`` detect nothing."""
        with self._errors(), self._precision():
            batch = self.model.data_preprocessor(self.adapter.prepare(batch))
            if hasattr(self.model, "stream"):
                self.model.stream(batch["inputs"]["img"], batch["data_samples"])
            else:
                self.model.predict(batch["inputs"], batch["data_samples"])

    @torch.no_grad()
    def run(self, batch: dict[str, Any]) -> tuple[list[ExpertFrame], list[Det3DDataSample]]:
        """One streamed step: a collated batch of the next frame of B different scenes.

        Raises:
            FD3DError: a tapped module did not run, or a detector of another project does not fit its adapter, or the adapter gave what is no
            :class:`ExpertFrame`.
        """
        with self._errors():
            with self.tapped() as seen, self._precision():
                batch = self.model.data_preprocessor(self.adapter.prepare(batch))
                samples = self.model.predict(batch["inputs"], batch["data_samples"])
            idle = [name for name in self.modules if name not in seen]
            if idle:
                raise FD3DError(f"the expert's tap '{idle[0]}' saw nothing; does its module run in prediction?")
            frames = self.adapter.read(self.model, seen, samples, self.num_queries)
            if not isinstance(self.model, MultiCameraDetector):
                for frame in frames:
                    check_frame(frame, self.num_queries, type(self.adapter).__name__)
            return frames, samples
