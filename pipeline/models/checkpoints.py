"""Checkpoints: checked against a detector, loaded, and converted from official conventions."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.data import CLASSES
from pipeline.data.conversion import SHIFTS, check_conversion, class_rows
from pipeline.errors import FD3DError, counted, listed, warn_once
from pipeline.files import file_sha256, write_atomically

from .backbone import backbone_kind
from .bevformer.encoder import BEVFormerEncoder
from .build import build_detector, load_config
from .conventions import (
    CONVERTER,
    box_convention,
    check_trained_classes,
    class_named,
    declared_classes,
    shift_convention,
    told_classes,
)
from .query_head import QueryHead
from .reading import Checkpoint, read_checkpoint

# Box code of the new convention from the old one: w and l swap, and yaw' = -yaw - pi/2 makes sin' = -cos and cos' = -sin.
_NEW_FROM_OLD = [0, 1, 3, 2, 4, 5, 7, 6, 8, 9]
_SIGN = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, -1.0, -1.0, 1.0, 1.0]

_BY_CAMERA = "pts_bbox_head.transformer.cams_embeds"
_STATE_BOXES = (
    "--boxes old if mmdet3d before 1.0 made it (the original BEVFormer, DETR3D and FD3D), --boxes new if 1.0 or later made or "
    "converted it"
)


def load_checkpoint(model: nn.Module, path: str | Path, adapter: Mapping[str, Any] | None = None) -> Checkpoint:
    """Load a checkpoint strictly, and return what was read.

    A BEVFormer whose config does not say ``shift_current`` takes the setting from a converted checkpoint's notes.

    Args:
        adapter: as of :func:`check_conventions`.

    Raises:
        FD3DError: listing missing, unexpected and mismatched keys; or boxes, classes or ``shift_current`` of the file follow
            another convention than this project's or the config's, or the classes are others than in the training; or nothing in the file tells the conventions.
    """
    found = _in_names_of(model, read_checkpoint(path))
    _check_fit(model, found, path)
    check_conventions(model, found, path, adapter)
    check_trained_classes(found.training, path, adapter)
    if isinstance(shift := found.meta.get("shift_current"), bool):
        for encoder in _encoders(model):
            _check_shift(encoder, shift, path, found.meta.get("shift_told_by", "its notes"))
            encoder.shift_current = shift
    model.load_state_dict(found.state)
    return found


def _in_names_of(model: nn.Module, found: Checkpoint) -> Checkpoint:
    """What was read, with the prefixes of its wrappers where the detector's own names begin with these."""
    for start in range(len(found.wrappers)):
        prefix = "".join(found.wrappers[start:])
        if all(name.startswith(prefix) for name in model.state_dict()):
            return replace(found, state={f"{prefix}{name}": tensor for name, tensor in found.state.items()})
    return found


def check_conventions(
    model: nn.Module, found: Checkpoint, path: str | Path, adapter: Mapping[str, Any] | None = None
) -> None:
    """Refuse a checkpoint whose boxes or classes are not known to follow this project's conventions.

    Args:
        model: detector to load. A head of another project keeps its conventions, which its adapter declares.
        adapter: settings of the adapter in the detector's config.

    Raises:
        FD3DError: the conventions are others, or not told.
    """
    if not isinstance(getattr(model, "pts_bbox_head", None), QueryHead):
        _check_declared(found, path, adapter)
        return
    if found.training:
        return
    boxes = box_convention(found.meta)[0]
    if boxes is None:
        raise FD3DError(
            f"checkpoint {path} does not tell its conventions of boxes and classes (no meta, no training); state them in "
            f"'fd3d convert {path} OUT --config CONFIG --boxes old|new --classes NAME,...', or for the expert in the profile "
            "(boxes, classes beside checkpoint)"
        )
    if boxes != "old" and told_classes(found.meta) is None:
        raise FD3DError(
            f"checkpoint {path} does not tell the order of its classes (no list of names as CLASSES in its meta); state it in "
            f"'fd3d convert {path} OUT --config CONFIG --classes NAME,...', or for the expert in the profile (families.NAME.expert.classes)"
        )
    if boxes == "old" or class_rows(told_classes(found.meta), f"checkpoint {path}") is not None:
        raise FD3DError(
            f"checkpoint {path} has boxes of mmdet3d before 1.0 or classes in another order; "
            f"convert it with 'fd3d convert {path} OUT --config CONFIG'"
        )


def _check_declared(found: Checkpoint, path: str | Path, adapter: Mapping[str, Any] | None) -> None:
    """Compare the notes of another project's detector with what the config's adapter declares.

    Classes are compared by :func:`~pipeline.models.conventions.class_named`; of names that mean none of this project's the declaration
    is trusted, and where all names are such the two lists are warned of.

    Raises:
        FD3DError: the boxes are of mmdet3d before 1.0, or the classes are in another order than declared, or are neither told nor declared.
    """
    (boxes, witness), asked = box_convention(found.meta), adapter is not None
    adapter = adapter or {}
    if boxes == "old" and adapter.get("boxes") != "new" and not found.training:
        raise FD3DError(
            f"checkpoint {path} was made by mmdet3d before 1.0 ({witness}), whose LiDAR boxes were others; take the file of today's model zoo, or say "
            "adapter = dict(boxes=\"new\", ...) in the config where the file fits today's detector (boxes in a camera's frame have stayed)"
        )
    told, declared = told_classes(found.meta), declared_classes(adapter)
    if told is None and asked and "classes" not in adapter and not found.training:
        why = "does not tell its classes; declare them in the config's adapter: classes=[...], names of this project or None"
        raise FD3DError(f"checkpoint {path} {why}")
    if told is None:
        return
    meant = tuple(map(class_named, told))
    other = len(told) != len(declared) or any(
        a is not None and b not in (a, None) for a, b in zip(meant, declared, strict=True)
    )
    if other or ("classes" not in adapter and meant != CLASSES):
        raise FD3DError(
            f"checkpoint {path} has the classes {', '.join(told)}; declare them in the config's adapter: classes=[...], in this order, each by a "
            "name of this project or None"
        )
    if not any(meant) and any(declared):
        pairs = ", ".join(f"{a} = {b}" for a, b in zip(told, declared, strict=True))
        warn_once(
            f"checkpoint {path} has no class by a name of this project, so the order of the adapter's classes cannot be compared: {pairs}"
        )


def _encoders(model: nn.Module) -> list[BEVFormerEncoder]:
    return [module for module in model.modules() if isinstance(module, BEVFormerEncoder)]


def _check_shift(encoder: BEVFormerEncoder, shift: bool, path: str | Path, witness: str) -> None:
    if encoder.states_shift and encoder.shift_current != shift:
        raise FD3DError(
            f"the config's encoder.shift_current is {encoder.shift_current}, but checkpoint {path} was trained with {shift} "
            f"({witness}); set it to {shift}, or leave it out"
        )


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
    first = next(iter(own), "")
    inside = next((name.removesuffix(first) for name in state if first and name.endswith(f".{first}")), "")
    if inside and all(f"{inside}{k}" in state for k in own) and not all(k in state for k in own):
        raise FD3DError(
            f"checkpoint {path} has the detector's tensors below '{inside}'; save these alone, by their names without '{inside}'"
        )
    missing, unexpected = ([k for k in a if k not in b] for a, b in ((own, state), (state, own)))
    mismatched = [
        f"{k} {tuple(given.shape)} instead of {tuple(v.shape)}" if given.shape != v.shape else f"{k} {given.dtype}"
        for k, v in own.items()
        if (given := state.get(k)) is not None
        and (given.shape != v.shape or (v.is_floating_point() and not given.is_floating_point()))
    ]
    problems = [
        f"{len(keys)} {kind} ({listed(keys, 2)})"
        for kind, keys in (("missing", missing), ("unexpected", unexpected), ("mismatched", mismatched))
        if keys
    ]
    if problems:
        cameras, theirs = (s[_BY_CAMERA].shape[0] if _BY_CAMERA in s else 0 for s in (own, state))
        fix = "give the config that it was trained with, or a checkpoint of this config's detector"
        if problems == [f"1 mismatched ({listed(mismatched)})"] and cameras != theirs:
            fix = (
                f"it was trained with {counted(theirs, 'camera')}, the config has {cameras}: train a detector for these, or list the "
                "file's cameras in data.cameras"
            )
        raise FD3DError(f"checkpoint {path} does not fit the config: {'; '.join(problems)}; {fix}")


def convert_checkpoint(
    source: Path,
    out: Path,
    config: Path,
    boxes: str = "auto",
    classes: Sequence[str] | None = None,
    shift: str = "auto",
) -> dict[str, Any]:
    """Write an official BEVFormer, DETR3D or FD3D checkpoint as a plain one in this project's conventions.

    The last regression layer of every decoder layer is turned from boxes (w, l, yaw) of mmdet3d before 1.0 to boxes
    (l, w, -yaw - pi/2) of later versions, and the last classification layer to the order of ``CLASSES``; every other
    tensor is kept. Source of the formulas: mmdet3d's notes on the refactored coordinate systems of 1.0.0rc0.

    Args:
        source: official file.
        out: file to write, ``state_dict`` and ``meta``.
        config: of the detector that the file must fit.
        boxes: convention of the file, ``old`` (mmdet3d before 1.0) or ``new``; ``auto`` reads the file's notes.
        classes: class names in the file's order; None reads the file's notes.
        shift: ``shift_current`` of the code that trained a BEVFormer, ``true`` or ``false``; ``auto`` reads the file's notes,
            and where these do not tell, the config.

    Returns:
        the meta written: source, source_sha256, config, boxes, classes, shift_current, shift_told_by, backbone, left_out.

    Raises:
        FD3DError: as of :func:`converted`; or ``source`` is ``out`` itself, or ``out`` cannot be written.
    """
    check_conversion(source, out, boxes, classes, shift)
    content = converted(source, config, boxes, classes, shift)
    save_checkpoint(content, out)
    meta: dict[str, Any] = content["meta"]
    return meta


def in_own_conventions(found: Checkpoint) -> bool:
    """Whether a checkpoint was converted, or is of a training of this project, by its notes."""
    return box_convention(found.meta)[1] == CONVERTER or bool(found.training)


def converted(
    source: Path, config: Path, boxes: str = "auto", classes: Sequence[str] | None = None, shift: str = "auto"
) -> dict[str, Any]:
    """What :func:`convert_checkpoint`, which has the arguments, writes: ``state_dict`` and ``meta``.

    Raises:
        FD3DError: the config's detector is of another project, the file does not fit or contradicts the config, was converted before, has other classes, or does not tell
            a convention that is left to its notes.
    """
    found = read_checkpoint(source)
    cfg = load_config(config)
    model = build_detector(cfg)
    if not isinstance(getattr(model, "pts_bbox_head", None), QueryHead):
        raise FD3DError(
            f"{type(model).__name__} of {config} is none of this project's detectors, so nothing is converted; use the checkpoint as it is, and "
            "declare its classes and boxes in the config's adapter"
        )
    told, witness = box_convention(found.meta)
    if in_own_conventions(found):
        raise FD3DError(f"checkpoint {source} is in this project's conventions already; use it as it is")
    if witness == "detr3d_convert_tag" and boxes == "old":
        raise FD3DError(f"checkpoint {source} was converted by mmdetection3d ({witness}); give --boxes new")
    convention = told if boxes == "auto" else boxes
    _warn_of_other(source, "--boxes", boxes, told, witness)
    if convention is None:
        raise FD3DError(f"checkpoint {source} does not tell its box convention; give {_STATE_BOXES}")
    if classes is None and told_classes(found.meta) is None:
        raise FD3DError(
            f"checkpoint {source} does not tell the order of its classes; give --classes NAME,... in the file's order (of "
            f"BEVFormer and DETR3D: {','.join(CLASSES)})"
        )
    order = class_rows(
        *((told_classes(found.meta), f"checkpoint {source}") if classes is None else (classes, "--classes"))
    )
    noted = told_classes(found.meta)
    if classes is not None and noted is not None and tuple(map(class_named, noted)) != tuple(classes):
        _warn_of_other(source, "--classes", ", ".join(classes), ", ".join(noted), "its notes")
    _check_fit(model, found, source)
    meta = {
        "converted_by": CONVERTER,
        "source": source.name,
        "source_sha256": file_sha256(source),
        "config": config.name,
        "boxes": f"{'converted from old' if convention == 'old' else 'new as they were'}, told by "
        + (witness if boxes == "auto" else "--boxes"),
        "classes": ("as they were" if order is None else f"reordered, rows {order}")
        + ("" if classes is None else ", told by --classes"),
        **_shift_notes(model, found, source, shift),
        "left_out": found.left_out,
    }
    if "img_backbone" in cfg.model:
        meta["backbone"] = backbone_kind(cfg.model.img_backbone)
    state = {name: found.state[name].to(own.dtype, copy=True) for name, own in model.state_dict().items()}
    if convention == "old":
        for name in _last_layers(model, "reg_branches"):
            row_sign = torch.tensor(_SIGN).reshape(-1, *[1] * (state[name].dim() - 1))
            state[name] = state[name][_NEW_FROM_OLD] * row_sign
        state["pts_bbox_head.code_weights"] = state["pts_bbox_head.code_weights"][_NEW_FROM_OLD]
    if order is not None:
        for name in _last_layers(model, "cls_branches"):
            state[name] = state[name][order]
    return {"state_dict": state, "meta": meta}


def _shift_notes(model: nn.Module, found: Checkpoint, source: Path, option: str) -> dict[str, Any]:
    """Notes on ``shift_current``, none for a detector without a BEV encoder."""
    encoders = _encoders(model)
    if not encoders:
        return {}
    shift, witness = shift_convention(found.meta, found.distilled)
    if option != "auto":
        _warn_of_other(source, "--shift-current", option, None if shift is None else str(shift).lower(), witness)
        shift, witness = SHIFTS[option], "--shift-current"
    elif shift is None and encoders[0].states_shift:
        shift, witness = encoders[0].shift_current, f"the config, since the file does not tell ({witness})"
    if shift is None:
        raise FD3DError(
            f"checkpoint {source} does not tell whether its code shifted the current frame's reference points ({witness}); give "
            "--shift-current true for BEVFormer before 27 July 2023 or a copy of it and for FD3D's release, false for later code, or set encoder.shift_current in the config"
        )
    for encoder in encoders:
        _check_shift(encoder, shift, source, witness)
    return {"shift_current": shift, "shift_told_by": witness}


def _warn_of_other(source: Path, option: str, given: str, told: str | None, witness: str) -> None:
    """Warn of an option, which counts, against what a file's notes tell; None where they do not."""
    if told is not None and given not in ("auto", told):
        warn_once(
            f"{option} is {given}, but checkpoint {source} tells {told} ({witness}); the option counts, leave it out unless the file's notes are wrong"
        )


def _last_layers(model: nn.Module, branches: str) -> list[str]:
    """Names of weight and bias of the last linear layer of a head's ``reg_branches`` or ``cls_branches``."""
    return [
        f"pts_bbox_head.{branches}.{i}.{len(branch) - 1}.{leaf}"
        for i, branch in enumerate(getattr(model.pts_bbox_head, branches))
        for leaf in ("weight", "bias")
    ]
