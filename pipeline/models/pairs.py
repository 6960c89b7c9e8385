"""Whether detectors, rigs and data fit each other: told before stage 1 takes its hours."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

from mmengine.config import Config
from torch import nn

from pipeline.data.index import FrameIndex
from pipeline.data.made_for import check_views, tells_cameras_apart
from pipeline.data.rig import EGO, other_images, other_sensors, other_turn, sizes_of, turn_of, turned_otherwise
from pipeline.errors import FD3DError, counted, warn_once

from .build import build_detector, load_config
from .conventions import declared_classes, other_classes
from .detector import MultiCameraDetector
from .pretrained import inherit_weights, inherits_head
from .reading import read_checkpoint


@dataclass(frozen=True)
class StudentPlan:
    """What a student takes from its expert."""

    config: Path
    """Detector config of the student."""
    inherit: tuple[str, ...] = ()
    """Modules that start from the expert's weights."""
    levels: tuple[int, ...] | None = None
    """Pyramid levels to distil; None for all."""
    layers: tuple[int, ...] | None = None
    """Decoder layers of the fine-grained loss; None for all."""
    section: str = "distill"
    """Section of the profile that the last three come from, in messages."""
    own_only: tuple[str, ...] = ()
    """Settings that are on and need a student of this project."""
    equal_channels: tuple[str, ...] = ()
    """Settings that are on and need as many channels on the student's maps as on the expert's; ``w_mixed`` on the pyramid alone."""
    reach: Callable[[float], None] | None = None
    """Check that a store's areas on the BEV map reach far enough for cells of a side, metres; None where no store is planned."""

    @classmethod
    def of(cls, config: Path, distill: Any, stored: Any = None) -> Self:
        """Plan of a student by settings of distillation, which have the fields of a plan.

        Args:
            stored: rule of the areas that the planned store covers.
        """
        reach = None if stored is None else partial(distill.geometry.check_reach, distill.rule, stored)
        chosen: dict[str, Any] = {
            name: getattr(distill, name, None) for name in ("levels", "layers")
        }  # not every method has them
        mixed = ("w_mixed",) if getattr(distill, "w_mixed", 0) else ()
        head = ("head",) if getattr(distill, "head", "frozen") == "trainable" else ()
        residual = ("residual",) if getattr(distill, "residual", False) else ()
        needs: dict[str, Any] = {"own_only": mixed + head, "equal_channels": mixed + residual}
        return cls(config, distill.inherit, section=distill.section, reach=reach, **chosen, **needs)


def check_rig(
    cfg: Config,
    checkpoint: Path | None,
    cameras: Sequence[str],
    reference: str,
    folder: Path | None = None,
    turn: float | None = None,
) -> None:
    """Refuse data that are not of a detector's rig, by its config and by its checkpoint, before the detector is built.

    Args:
        checkpoint: None for random weights.
        cameras, reference, folder, turn: as of :func:`check_trained_rig`.

    Raises:
        FD3DError: as of :func:`~pipeline.data.made_for.check_views` and :func:`check_trained_rig`.
    """
    check_views(cfg, len(cameras), cfg.filename)
    if checkpoint is not None:
        check_trained_rig(checkpoint, cameras, reference, folder, turn, tells_cameras_apart(cfg))


def check_data(cfg: Config, checkpoint: Path | None, index: FrameIndex, root: Path) -> None:
    """:func:`check_rig` of all that an index tells, and :func:`warn_of_sizes`.

    Args:
        root: of the data set.

    Raises:
        FD3DError: as of :func:`check_rig`.
    """
    turn = turn_of(index.arrays["lidar2ego"])
    check_rig(cfg, checkpoint, index.cameras, index.reference, root / index.version, turn)
    sizes = sizes_of(index.arrays["image_sizes"])
    if checkpoint is not None and sizes is not None:
        warn_of_sizes(checkpoint, sizes, index.cameras)


def warn_of_sizes(checkpoint: Path, sizes: Sequence[tuple[int, int]], cameras: Sequence[str]) -> None:
    """Warn of images of other sizes than a detector was trained with; a checkpoint that tells none is trusted.

    A detector takes any size, and a config may scale larger images down to the training's, so this is no error.

    Args:
        sizes: rows and columns of each camera's images.
        cameras: names of the cameras.
    """
    told = read_checkpoint(checkpoint).training.get("image_sizes")
    trained = [tuple(size) for size in told] if isinstance(told, list) else []
    if len(trained) == len(sizes) == len(cameras) and (odd := other_images(trained, sizes, cameras)):
        warnings.warn(
            f"checkpoint {checkpoint} was trained with {odd}; the detector runs on these, train for these where metrics count",
            stacklevel=3,
        )


def check_trained_rig(
    checkpoint: Path,
    cameras: Sequence[str],
    reference: str,
    folder: Path | None = None,
    turn: float | None = None,
    told_apart: bool = False,
) -> None:
    """Refuse a checkpoint that was trained here with these cameras in another order, or with boxes in another frame.

    Cameras of other names are taken for another rig of the same kind, of which a detector with embeddings by camera warns; a checkpoint of another project tells nothing of its rig, an
    older one nothing of the turn.

    Args:
        cameras, reference: names of the cameras in order, and the frame of reference, as of an index.
        folder: of the data set's tables, whose sensors the message then names where the checkpoint's is none of these; None
            where the tables are not at hand.
        turn: degrees by which the frame of reference is turned, see :func:`~pipeline.data.rig.turn_of`; None compares none.
        told_apart: whether the detector has weights for each camera by its place in the order. Names that differ only in capital
            letters, ``_`` and ``-`` are one camera's then.

    Raises:
        FD3DError: the checkpoint cannot be read, or has another order, frame or turn of the frame; naming both.
    """
    facts = read_checkpoint(checkpoint).training
    trained, frame = list(facts.get("cameras") or cameras), facts.get("reference") or reference
    ours, theirs = ([_spelled(name) if told_apart else name for name in names] for names in (cameras, trained))
    if theirs != ours and sorted(theirs) == sorted(ours):
        raise FD3DError(
            f"checkpoint {checkpoint} was trained with the cameras {', '.join(trained)}, the data have {', '.join(cameras)}; list them in "
            "that order under data.cameras and make the index again"
        )
    if (frame == EGO) != (reference == EGO):
        others = other_sensors(folder) if folder is not None else ()
        advice = f"set data.reference: {frame} and make the index again"
        if frame != EGO and folder is None:  # the car may lack a sensor of this name
            advice = f"set data.reference to the sensor that stands for {frame} and make the index again, or give a checkpoint in the frame of {EGO}"
        elif frame != EGO and others and frame not in others:
            advice = f"set data.reference to the sensor that stands for {frame} ({', '.join(others)}) and make the index again"
        elif frame != EGO and folder is not None and not others:
            advice = f"the data set has no sensor but cameras to set data.reference to; give a checkpoint in the frame of {EGO}"
        raise FD3DError(
            f"checkpoint {checkpoint} was trained with boxes in the frame of {frame}, the data have {reference}; {advice}"
        )
    if told_apart and theirs != ours and len(theirs) == len(ours):
        _warn_of_names(checkpoint, trained, cameras)
    own = facts.get("lidar_turn")
    if turn is not None and own is not None and other_turn(own, turn):
        raise FD3DError(turned_otherwise(f"checkpoint {checkpoint} was trained with", frame, own, reference, turn))


def _spelled(name: str) -> str:
    """A camera's name without what conversions of a data set change."""
    return name.casefold().translate(dict.fromkeys(map(ord, "_- ")))


def _warn_of_names(checkpoint: Path, trained: Sequence[str], cameras: Sequence[str]) -> None:
    first = next(
        i for i, names in enumerate(zip(trained, cameras, strict=True)) if _spelled(names[0]) != _spelled(names[1])
    )
    warn_once(
        f"checkpoint {checkpoint} was trained with the cameras {', '.join(trained)}, the data have {', '.join(cameras)}: camera {first + 1}, "
        f"{cameras[first]}, takes the embedding of {trained[first]}, and so do the others in order; if another order fits, list the data's "
        "names in it under data.cameras and make the index again"
    )


def planned_student(plan: StudentPlan, expert: Path, weights: Path | None = None) -> nn.Module:
    """A student, built, that can be distilled as planned.

    Args:
        expert: config of the expert.
        weights: checkpoint of the expert, whose weights the student then has where they are inherited.

    Raises:
        FD3DError: a module to inherit, a level or a layer does not exist, the planned store ends before what re-anchored
            targets read, a setting is for students of this project only, or the expert's weights do not fit; naming the setting.
    """
    configs = cfg, above = load_config(plan.config), load_config(expert)
    model = build_detector(cfg)
    if plan.own_only and not isinstance(model, MultiCameraDetector):
        raise FD3DError(
            f"{plan.section}.{plan.own_only[0]} is for students of this project, and {plan.config} is another project's; leave it out"
        )
    names = dict(model.named_modules()).keys() - {""}
    if unknown := [module for module in plan.inherit if module not in names]:
        known = ", ".join(name for name, _ in model.named_children())
        raise FD3DError(
            f"{plan.section}.inherit has {unknown[0]!r:.80}, no module of {plan.config}; there are {known} and modules below"
        )
    own, theirs = (declared_classes(one.get("adapter")) for one in configs)
    if inherits_head(plan.inherit) and other_classes(theirs, own):
        raise FD3DError(
            f"{plan.section}.inherit has a head, whose classes are {', '.join(map(str, theirs))} in config {expert} and "
            f"{', '.join(map(str, own))} in {plan.config}; declare the same in both adapters, or inherit no head"
        )
    decoder = above.model.get("pts_bbox_head", {}).get("transformer", {}).get("decoder", {})
    sizes = {
        "levels": [one.model.get("img_neck", {}).get("num_outs") for one in configs],
        "layers": [decoder.get("num_layers")],  # only the expert's are read
    }
    ours, most = sizes["levels"]
    if plan.levels is None and ours and most and ours < most:
        raise FD3DError(
            f"{plan.section}.levels is null for all, but the student {plan.config} has {ours} of the expert's {counted(most, 'level')}; set it to {list(range(ours))}"
        )
    for name, counts in sizes.items():
        numbers, count = getattr(plan, name), min((count for count in counts if count), default=None)
        if numbers is not None and count is not None and max(numbers) >= count:
            raise FD3DError(f"{plan.section}.{name} is {list(numbers)}; this family has {name} 0..{count - 1}")
    head = above.model.get("pts_bbox_head", {})
    if plan.reach and "bev_h" in head and "pc_range" in above:
        x0, y0, _, x1, y1, _ = map(float, above.pc_range)
        plan.reach(max((x1 - x0) / head.bev_w, (y1 - y0) / head.bev_h))
    if weights is not None and plan.inherit:
        try:
            inherit_weights(model, weights, plan.inherit, expert, cfg.get("adapter"))
        except FD3DError as error:
            raise FD3DError(f"{plan.section}.inherit is {list(plan.inherit)}: {error}") from error
    return model
