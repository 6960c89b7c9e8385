"""Checkpoint files: read without executing anything, their tensors under the detector's own names."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import FD3DError, listed
from pipeline.files import check_needed

from .safe_load import load_plain

_STATES = ("state_dict", "model_state_dict", "model", "module")
"""Entries that files have their state dict under: mmengine's and Lightning's, torch's tutorials', DETR's, DeepSpeed's."""
_WRAPPERS = ("module.", "model.", "detector.", "net.")
"""Attributes that parallel wrappers, averages of torch and training frameworks keep a detector in."""


@dataclass(frozen=True)
class Checkpoint:
    """Contents of a checkpoint file.

    Attributes:
        state: tensors of the detector by name.
        left_out: number of tensors of a distiller's teacher or of moving averages beside the detector's.
        meta: notes of the file's writer, empty when there are none.
        training: facts on this project's training of the detector, else empty.
        distilled: whether the file has the distiller of FD3D's release around the detector.
        wrappers: prefixes that all names in the file begin with, the outermost first, and those of ``state`` do not.
    """

    state: dict[str, Tensor]
    left_out: int
    meta: dict[str, Any]
    training: dict[str, Any]
    distilled: bool = False
    wrappers: tuple[str, ...] = ()

    @property
    def mute(self) -> bool:
        """Whether nothing beside the tensors tells what they are."""
        return not (self.meta or self.training)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a state dict, bare or under ``state_dict``; nothing in the file is executed.

    Names lose the prefixes of wrapped modules: ``_orig_mod.`` anywhere, ``module.``, ``model.``, ``detector.`` and ``net.`` where
    all names begin with it (in a file of Lightning, where any do, and the rest is left out); of a distiller (FD3D's release) the
    ``student.`` is read. Moving averages beside the detector's tensors are left out. Log histories are not read.

    Raises:
        FD3DError: the file is missing, truncated, of safetensors, includes more than tensors and plain values, or a value is not
            finite.
    """
    check_needed(checkpoint=Path(path))
    try:
        content = load_plain(path)
    except Exception as error:  # whatever a damaged or foreign file raises, the file is at fault
        told = str(error).split("WeightsUnpickler error: ")[-1].strip() or type(error).__name__
        reason = told.splitlines()[0].split(". ")[0][:120]
        raise FD3DError(
            f"checkpoint {path} is not a plain PyTorch checkpoint ({reason}); copy it again if it is cut short, else "
            "save its state dict of tensors alone"
        ) from error
    found = content if isinstance(content, dict) else {}
    state = next((found[name] for name in _STATES if isinstance(found.get(name), dict)), found)
    if not state or not all(_is_weight(*item) for item in state.items()):
        beside = [] if any(isinstance(value, Tensor) for value in found.values()) else [str(name) for name in found]
        has = f" but {listed(beside)}" if beside else ""
        raise FD3DError(
            f"checkpoint {path} holds no state dict{has}; expected dense tensors by name, bare or under 'state_dict'"
        )
    if broken := [name for name, tensor in state.items() if not tensor.isfinite().all()]:
        raise FD3DError(
            f"checkpoint {path} has NaN or infinite values in {broken[0]} ({len(broken)} of {len(state)} tensors); take an earlier one"
        )
    meta, training = (note if isinstance(note, dict) else {} for note in map(found.get, ("meta", "training")))
    lightning = "pytorch-lightning_version" in found
    inner, wrappers = _unwrapped(state, lightning)
    kept, averaged = _detector_state(inner), found.get("ema_state_dict")
    left_out = len(state) - len(kept) + (len(averaged) if isinstance(averaged, dict) else 0)
    distilled = not lightning and any(name.startswith("student.") for name in inner)
    return Checkpoint(kept, left_out, meta, training, distilled, wrappers)


def _is_weight(name: object, value: object) -> bool:
    dense = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta
    return isinstance(name, str) and dense


def _unwrapped(state: Mapping[str, Tensor], lightning: bool) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Tensors below the wrappers around a detector, and the wrappers' prefixes, the outermost first.

    Args:
        lightning: whether metrics and losses of a training may lie beside the wrapper.
    """
    inner, wrappers = {name.replace("_orig_mod.", ""): tensor for name, tensor in state.items()}, list[str]()
    while True:
        heads = {f"{name.partition('.')[0]}." for name in inner}
        found = heads.intersection(_WRAPPERS)
        beside = {head for head in heads - found if not _is_average(head)}
        if len(found) != 1 or (beside and not lightning):
            return inner, tuple(wrappers)
        wrappers.extend(found)
        inner = {n.removeprefix(wrappers[-1]): tensor for n, tensor in inner.items() if n.startswith(wrappers[-1])}


def _is_average(head: str) -> bool:
    return head.startswith(("ema.", "ema_")) or head in ("model_ema.", "n_averaged.")


def _detector_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    student = {name.removeprefix("student."): t for name, t in state.items() if name.startswith("student.")}
    averages = {f"ema_{name.replace('.', '_')}" for name in state}  # the buffers of mmcv's EMAHook
    return student or {name: tensor for name, tensor in state.items() if name not in averages}
