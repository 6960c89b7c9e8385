"""Checkpoint files: read without executing anything, checked against a detector, converted from official conventions."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.data import CLASSES
from pipeline.errors import FD3DError
from pipeline.files import write_atomically

from .build import build_detector, file_sha256, load_config

# Types in official files and mmengine's own besides tensors and Python's own values: numpy arrays and scalars, under the
# module names of numpy 1 and 2. Allowed for the whole process: torch's context manager would on leaving also forbid what
# mmengine needs to resume a training later.
torch.serialization.add_safe_globals(
    [
        *(
            (made_by, f"numpy.{core}.multiarray.{made_by.__name__}")
            for made_by in (np.core.multiarray._reconstruct, np.core.multiarray.scalar)  # type: ignore[attr-defined]
            for core in ("core", "_core")
        ),
        np.ndarray,
        np.dtype,
        *{
            type(np.dtype(kind))
            for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?", "U", "S")
        },
    ]
)

# Packages whose version tells the box convention, the best witness first: old below the first version, new from the
# second. mmdet3d changed the boxes in 1.0.0rc0 and mmengine came later; the others' bounds are what mmdet3d 0.18 and 1.0 required
# of them (compatibility table in mmdet3d's FAQ).
_WITNESSES = (
    ("mmdet3d_version", (1,), (1,)),
    ("mmengine_version", (0,), (0,)),
    ("mmdet_version", (2, 19), (3,)),
    ("mmcv_version", (1, 3, 17), (1, 5, 1)),
)
# Box code of the new convention from the old one: w and l swap, and yaw' = -yaw - pi/2 makes sin' = -cos and cos' = -sin.
_NEW_FROM_OLD = [0, 1, 3, 2, 4, 5, 7, 6, 8, 9]
_SIGN = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, -1.0, -1.0, 1.0, 1.0]

_CONVERTER = "fd3d convert"
BOXES = ("auto", "old", "new")


@dataclass(frozen=True)
class Checkpoint:
    """Contents of a checkpoint file.

    Attributes:
        state: tensors of the detector by name.
        left_out: number of tensors of a distiller's teacher or of moving averages beside the detector's.
        meta: notes of the file's writer, empty when there are none.
        training: facts on this project's training of the detector, else empty.
    """

    state: dict[str, Tensor]
    left_out: int
    meta: dict[str, Any]
    training: dict[str, Any]


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a state dict, bare or under ``state_dict``; nothing in the file is executed.

    Names lose the prefix ``module.`` of parallel training; of a distiller (FD3D's release) the ``student.`` is read.

    Raises:
        FD3DError: the file is missing, truncated, or includes more than tensors and plain values.
    """
    if not Path(path).is_file():
        raise FD3DError(f"checkpoint {path} does not exist")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or foreign file raises, the file is at fault
        told = str(error).split("WeightsUnpickler error: ")[-1].strip() or type(error).__name__
        reason = told.splitlines()[0].split(". ")[0][:120]
        raise FD3DError(
            f"checkpoint {path} is not a plain PyTorch checkpoint ({reason}); copy it again if it is cut short, else "
            "save its state dict of tensors alone"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise FD3DError(f"checkpoint {path} holds no state dict; expected tensors by name, bare or under 'state_dict'")
    meta, training = (note if isinstance(note, dict) else {} for note in map(content.get, ("meta", "training")))
    kept = _detector_state(state)
    return Checkpoint(kept, len(state) - len(kept), meta, training)


def _detector_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    plain = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    student = {name.removeprefix("student."): t for name, t in plain.items() if name.startswith("student.")}
    averages = {f"ema_{name.replace('.', '_')}" for name in plain}  # the buffers of mmcv's EMAHook
    return student or {name: tensor for name, tensor in plain.items() if name not in averages}


def load_checkpoint(model: nn.Module, path: str | Path) -> Checkpoint:
    """Load a checkpoint strictly, and return what was read.

    Raises:
        FD3DError: listing missing, unexpected and mismatched keys; or boxes or classes of the file follow another
            convention than this project's.
    """
    found = read_checkpoint(path)
    _check_fit(model, found, path)
    if box_convention(found.meta)[0] == "old" or _class_order(found.meta, path) is not None:
        raise FD3DError(
            f"checkpoint {path} has boxes of mmdet3d before 1.0 or classes in another order; "
            f"convert it with 'fd3d convert {path} OUT --config CONFIG'"
        )
    model.load_state_dict(found.state)
    return found


def inherit_weights(model: nn.Module, path: str | Path, modules: Sequence[str]) -> int:
    """Start modules of a student from an expert's weights, as FD3D's released baseline starts its detection head.

    Every tensor below ``modules`` that both detectors have with the same shape is taken: a student may have fewer decoder
    layers or a smaller BEV map.

    Args:
        model: the student.
        path: checkpoint of the expert.
        modules: paths of modules.

    Returns:
        number of tensors taken.

    Raises:
        FD3DError: the file cannot be read, or a module has nothing in common with the expert.
    """
    own, found = model.state_dict(), read_checkpoint(path).state
    taken: dict[str, Tensor] = {}
    for module in modules:
        fit = {
            name: tensor
            for name, tensor in found.items()
            if name.startswith(f"{module}.") and name in own and own[name].shape == tensor.shape
        }
        if not fit:
            raise FD3DError(
                f"nothing below '{module}' fits the expert in {path}; name a module that both detectors have"
            )
        taken |= fit
    model.load_state_dict(taken, strict=False)
    return len(taken)


def save_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Write a checkpoint's ``state_dict`` and notes.

    Raises:
        FD3DError: the disk is full or the folder cannot be written; what stood at ``path`` stays.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)  # straight into a file, torch would turn a full disk's OSError into another
    write_atomically(path, lambda file: file.write(buffer.getbuffer()), binary=True)


def _check_fit(model: nn.Module, found: Checkpoint, path: str | Path) -> None:
    state, own = found.state, model.state_dict()
    missing = [k for k in own if k not in state]
    unexpected = [k for k in state if k not in own]
    mismatched = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(v.shape)}"
        for k, v in own.items()
        if k in state and state[k].shape != v.shape
    ]
    problems = [
        f"{len(keys)} {kind} ({', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''})"
        for kind, keys in (("missing", missing), ("unexpected", unexpected), ("mismatched", mismatched))
        if keys
    ]
    if problems:
        raise FD3DError(f"checkpoint {path} does not fit the config: {'; '.join(problems)}")


def box_convention(meta: Mapping[str, Any]) -> tuple[str | None, str]:
    """``old`` (mmdet3d before 1.0), ``new``, or None where a checkpoint's notes do not tell; and the note that tells."""
    if meta.get("converted_by") == _CONVERTER:
        return "new", _CONVERTER
    if meta.get("detr3d_convert_tag"):  # mmdetection3d's DETR3D converter leaves the old version in place
        return "new", "detr3d_convert_tag"
    for name, old_below, new_from in _WITNESSES:
        version = tuple(int(number) for number in re.findall(r"\d+", str(meta.get(name, "")))[:3])
        if version and (version < old_below or version >= new_from):
            return "old" if version < old_below else "new", f"{name} {meta[name]}"
    return None, "nothing in its meta"


def _class_order(meta: Mapping[str, Any], path: str | Path) -> list[int] | None:
    """For each of ``CLASSES`` its row in the checkpoint; None where that is the same or not said.

    Raises:
        FD3DError: the checkpoint has other classes.
    """
    names = meta.get("CLASSES")
    if isinstance(data := meta.get("dataset_meta"), dict):  # mmengine's place for them
        names = data.get("classes") or data.get("CLASSES")
    if not isinstance(names, list | tuple) or tuple(names) == CLASSES:
        return None
    if sorted(map(str, names)) != sorted(CLASSES):
        raise FD3DError(
            f"checkpoint {path} detects {', '.join(map(str, names))}; needed are nuScenes' {', '.join(CLASSES)}"
        )
    return [list(names).index(name) for name in CLASSES]


def convert_checkpoint(source: Path, out: Path, config: Path, boxes: str = "auto") -> dict[str, Any]:
    """Write an official BEVFormer, DETR3D or FD3D checkpoint as a plain one in this project's conventions.

    The last regression layer of every decoder layer is turned from boxes (w, l, yaw) of mmdet3d before 1.0 to boxes
    (l, w, -yaw - pi/2) of later versions, and the last classification layer to the order of ``CLASSES``; every other
    tensor is kept. Source of the formulas: mmdet3d's notes on the refactored coordinate systems of 1.0.0rc0.

    Args:
        source: official file.
        out: file to write, ``state_dict`` and ``meta``.
        config: of the detector that the file must fit.
        boxes: convention of the file, ``old`` (mmdet3d before 1.0) or ``new``; ``auto`` reads the file's notes.

    Returns:
        the meta written: source, source_sha256, config, boxes, classes, left_out.

    Raises:
        FD3DError: the file does not fit the config, was converted before, has other classes, does not tell its convention
            under ``auto``, or is ``out`` itself.
    """
    if boxes not in BOXES:
        raise FD3DError(f"--boxes is '{boxes}'; use {', '.join(BOXES)}")
    if out.exists() and source.exists() and out.samefile(source):
        raise FD3DError(f"{out} is the checkpoint itself; give another file to write")
    found = read_checkpoint(source)
    told, witness = box_convention(found.meta)
    if witness == _CONVERTER or found.training:
        raise FD3DError(f"checkpoint {source} is in this project's conventions already; use it as it is")
    if witness == "detr3d_convert_tag" and boxes == "old":
        raise FD3DError(f"checkpoint {source} was converted by mmdetection3d ({witness}); give --boxes new")
    convention = told if boxes == "auto" else boxes
    if convention is None:
        raise FD3DError(
            f"checkpoint {source} does not tell its box convention; give --boxes old if mmdet3d before 1.0 made it (the "
            "original BEVFormer, DETR3D and FD3D), --boxes new if 1.0 or later made or converted it"
        )
    order = _class_order(found.meta, source)
    model = build_detector(load_config(config))
    _check_fit(model, found, source)
    state = {name: found.state[name].to(own.dtype, copy=True) for name, own in model.state_dict().items()}
    if convention == "old":
        for name in _last_layers(model, "reg_branches"):
            row_sign = torch.tensor(_SIGN).reshape(-1, *[1] * (state[name].dim() - 1))
            state[name] = state[name][_NEW_FROM_OLD] * row_sign
        state["pts_bbox_head.code_weights"] = state["pts_bbox_head.code_weights"][_NEW_FROM_OLD]
    if order is not None:
        for name in _last_layers(model, "cls_branches"):
            state[name] = state[name][order]
    meta = {
        "converted_by": _CONVERTER,
        "source": source.name,
        "source_sha256": file_sha256(source),
        "config": config.name,
        "boxes": f"{'converted from old' if convention == 'old' else 'new as they were'}, told by "
        + (witness if boxes == "auto" else "--boxes"),
        "classes": "as they were" if order is None else f"reordered, rows {order}",
        "left_out": found.left_out,
    }
    save_checkpoint({"state_dict": state, "meta": meta}, out)
    return meta


def _last_layers(model: nn.Module, branches: str) -> list[str]:
    """Names of weight and bias of the last linear layer of a head's ``reg_branches`` or ``cls_branches``."""
    return [
        f"pts_bbox_head.{branches}.{i}.{len(branch) - 1}.{leaf}"
        for i, branch in enumerate(getattr(model.pts_bbox_head, branches))
        for leaf in ("weight", "bias")
    ]
