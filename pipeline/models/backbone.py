"""Kinds of ResNet backbones, by config and by the names of their tensors: one kind's weights mean nothing to another."""

import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from pipeline.errors import FD3DError, counted

_BLOCK = re.compile(r"(layer\d+)\.(\d+)\.")


def backbone_kind(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Depth, style and use of deformable convolutions of a config's ``img_backbone``, for a checkpoint's notes."""
    deformable = cfg.get("dcn") is not None and any(cfg.get("stage_with_dcn", ()))
    return {"depth": cfg.get("depth"), "style": cfg.get("style", "pytorch"), "deformable": deformable}


def check_kind(backbone: nn.Module, other: Mapping[str, Any], source: str) -> None:
    """Refuse the weights of a backbone of another kind.

    Args:
        backbone: backbone that would take the weights.
        other: the source's kind, as of :func:`backbone_kind`.
        source: the weights' file in messages.

    Raises:
        FD3DError: depth or style differ, or one of the two has deformable convolutions.
    """
    deformable = any(".conv_offset." in name for name, _ in backbone.named_parameters())
    own = {
        "depth": getattr(backbone, "depth", None),
        "style": getattr(backbone, "style", None),
        "deformable": deformable,
    }
    for name, value in own.items():
        if name in other and None not in (value, other[name]) and value != other[name]:
            raise FD3DError(
                f"{source} has a backbone with {name} {other[name]}, the detector's has {value}; take a file of the same backbone"
            )


def check_names(own: Collection[str], other: Collection[str], source: str, offsets_needed: bool = True) -> None:
    """Refuse the weights of a backbone whose stages are built in another way.

    Stages that only one of the two has are not compared: a student's backbone may end earlier.

    Args:
        own: names of the tensors of the backbone that would take the weights, below the backbone.
        other: names of the source's tensors, below its backbone.
        source: the weights' file in messages.
        offsets_needed: whether deformable convolutions need offsets from the source; else these may start from zero.

    Raises:
        FD3DError: a stage has another number of blocks, other blocks, or deformable convolutions on one side.
    """
    mine, theirs = _stages(own), _stages(other)
    for stage in sorted(mine.keys() & theirs.keys()):
        counts = [len({name.split(".")[1] for name in names[stage]}) for names in (theirs, mine)]
        if counts[0] != counts[1]:
            told = f"{counted(counts[0], 'block')} in {stage}, the detector's has {counts[1]}: another depth"
        elif any(f"{stage}.0.conv3.weight" in names for names in (own, other)) and not all(
            f"{stage}.0.conv3.weight" in names for names in (own, other)
        ):
            told = f"other blocks in {stage} than the detector's: another depth"
        else:
            deformed = [any(".conv_offset." in name for name in names[stage]) for names in (theirs, mine)]
            if deformed[0] == deformed[1] or (deformed[1] and not offsets_needed):
                continue
            has, lacks = ("", "not ") if deformed[0] else ("no ", "")
            told = f"{has}deformable convolutions in {stage}, the detector's does {lacks}have them"
        raise FD3DError(f"{source} has a backbone with {told}; take a file of the same backbone")


def _stages(names: Collection[str]) -> dict[str, set[str]]:
    stages: dict[str, set[str]] = {}
    for name in names:
        if found := _BLOCK.match(name):
            stages.setdefault(found[1], set()).add(name)
    return stages
