"""Checkpoint files: read without executing anything, their tensors under the detector's own names."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import FD3DError, counted, listed
from pipeline.files import check_needed

from .checksums import check_records
from .safe_load import load_plain

_STATES = ("state_dict", "model_state_dict", "model", "module")
"""Entries that files have their state dict under: mmengine's and Lightning's, torch's tutorials', DETR's, DeepSpeed's."""
_WRAPPERS = ("module.", "model.", "detector.", "net.")
"""Attributes that parallel wrappers, averages of torch and training frameworks keep a detector in."""
_NUMBERS = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128, torch.bool),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
)
"""Types of numbers that tensors may have; PyTorch computes little with float8 and the like."""


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


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a state dict, bare or under ``state_dict``; nothing in the file is executed.

    Names lose the prefixes of wrapped modules: ``_orig_mod.`` anywhere, ``module.``, ``model.``, ``detector.`` and ``net.`` where
    all names begin with it (in a file of Lightning, where any do, and the rest is left out); of a distiller (FD3D's release) the
    ``student.`` is read. Moving averages beside the detector's tensors are left out. Log histories are not read.

    Raises:
        FD3DError: the file is missing, truncated, damaged, of safetensors, includes more than tensors and plain values, a tensor is not dense
            or of numbers that are not computed with, a value is not finite, a variance is negative, or notes on the rig or classes of the
            training have another form than a training writes.
    """
    check_needed(checkpoint=Path(path))
    check_records(Path(path))
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
    if not any(isinstance(value, Tensor) for value in state.values()):
        beside = [] if any(isinstance(value, Tensor) for value in found.values()) else [str(name) for name in found]
        has = f" but {listed(beside)}" if beside else ""
        raise FD3DError(
            f"checkpoint {path} holds no state dict{has}; expected dense tensors by name, bare or under 'state_dict'"
        )
    if odd := {name: fault for name, value in state.items() if (fault := _fault(name, value))}:
        name, fault = next(iter(odd.items()))
        raise FD3DError(
            f"checkpoint {path} has {fault} under {name!r:.80} of its state dict ({counted(len(odd), 'odd value')} of {len(state)}); expected dense "
            "tensors by name: leave it out, or write a weight as a dense tensor of float32"
        )
    if broken := [name for name, tensor in state.items() if not tensor.isfinite().all()]:
        raise FD3DError(
            f"checkpoint {path} has NaN or infinite values in {broken[0]} ({len(broken)} of {len(state)} tensors); take an earlier one"
        )
    if broken := [name for name, tensor in state.items() if name.endswith(".running_var") and (tensor.real < 0).any()]:
        raise FD3DError(
            f"checkpoint {path}: {broken[0]} has negative values, which are no variance; copy the file again"
        )
    meta, training = (note if isinstance(note, dict) else {} for note in map(found.get, ("meta", "training")))
    _check_rig_notes(training, path)
    lightning = "pytorch-lightning_version" in found
    inner, wrappers = _unwrapped(state, lightning)
    kept, averaged = _detector_state(inner), found.get("ema_state_dict")
    left_out = len(state) - len(kept) + (len(averaged) if isinstance(averaged, dict) else 0)
    distilled = not lightning and any(name.startswith("student.") for name in inner)
    return Checkpoint(kept, left_out, meta, training, distilled, wrappers)


def _fault(name: object, value: object) -> str:
    """What an entry of a state dict is in place of a dense tensor by name; empty where nothing is odd."""
    if not isinstance(value, Tensor):
        return f"a value of type {type(value).__name__}"
    if not isinstance(name, str):
        return f"a tensor with a key of type {type(name).__name__}"
    if value.is_meta:
        return "a tensor without values (of the meta device)"
    if value.is_quantized:
        return "a quantised tensor"
    if value.layout != torch.strided or value.is_nested:
        return "a nested tensor" if value.is_nested else f"a tensor of layout {value.layout}".replace("torch.", "")
    return "" if value.dtype in _NUMBERS else f"a tensor of {str(value.dtype).removeprefix('torch.')}"


def _check_rig_notes(training: Mapping[str, Any], path: str | Path) -> None:
    """Refuse notes on rig and classes that no training writes, since the comparison with a data set's rig or a config's classes would be void.

    Raises:
        FD3DError: naming the note.
    """
    cameras, sizes = training.get("cameras"), training.get("image_sizes")
    named = isinstance(cameras, list | tuple) and all(isinstance(name, str) for name in cameras)
    sized = isinstance(sizes, list | tuple) and all(
        isinstance(hw, list | tuple) and len(hw) == 2 and all(type(n) is int and n > 0 for n in hw) for hw in sizes
    )
    turn, classes = training.get("lidar_turn"), training.get("classes")
    classed = isinstance(classes, list | tuple) and all(name is None or isinstance(name, str) for name in classes)
    for name, fits, form in (
        ("cameras", named, "a list of names"),
        ("reference", isinstance(training.get("reference"), str), "the name of a sensor, or ego"),
        ("lidar_turn", isinstance(turn, int | float) and not isinstance(turn, bool) and math.isfinite(turn), "degrees"),
        ("image_sizes", sized, "[rows, columns] for each camera"),
        ("classes", classed, "a list of names, or None for a class that is left out"),
    ):
        if training.get(name) is not None and not fits:
            raise FD3DError(
                f"checkpoint {path} has training.{name} {training[name]!r:.80}; expected {form}; correct the note, or leave it out"
            )
    if cameras and sizes and len(cameras) != len(sizes):
        raise FD3DError(
            f"checkpoint {path} has training.image_sizes for {counted(len(sizes), 'camera')}, but names {len(cameras)} under "
            "training.cameras; correct the notes, or leave the sizes out"
        )


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
    averages = _averages(state)
    return student or {name: tensor for name, tensor in state.items() if name not in averages}


def _averages(state: Mapping[str, Tensor]) -> set[str]:
    """Names of moving averages: the buffers of mmcv's EMAHook, counters, and what lies below a head of averages by names that the
    detector has beside them. A module of a detector's own may have such a head, and averages may be all that there is."""
    found = {f"ema_{name.replace('.', '_')}" for name in state} | {"n_averaged"}
    for head in {f"{name.partition('.')[0]}." for name in state}:
        below = {name.removeprefix(head): tensor for name, tensor in state.items() if name.startswith(head)}
        if _is_average(head) and below:
            inner, _ = _unwrapped(below, lightning=False)
            if 2 * sum(name in state for name in inner) > len(inner):
                found |= {f"{head}{name}" for name in below}
    return found
