"""Weights that a training starts from: a pretrained file of a known layout, or modules of an expert."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pipeline.errors import FD3DError, counted, listed

from .backbone import backbone_kind, check_kind, check_names
from .build import load_config
from .checkpoints import check_conventions
from .conventions import check_trained_classes
from .reading import Checkpoint, read_checkpoint

BACKBONE, NECK = "img_backbone", "img_neck"
TORCHVISION = "a ResNet as torchvision's"
"""Layout whose files tell their style: strides lie on the second convolution of a block."""
_SHOWN = 4  # names that a line of the report lists


@dataclass(frozen=True)
class Taken:
    """Tensors that a detector took from a file.

    Attributes:
        names: names of the detector's tensors that were taken.
        report: lines on what was taken of every module, and on what was left out.
    """

    names: frozenset[str]
    report: tuple[str, ...]


def pretrained_names(names: Collection[str], path: str | Path) -> tuple[str, dict[str, str]]:
    """Layout of a pretrained file, and the detector's name of every tensor of its backbone and neck, by the file's name.

    Raises:
        FD3DError: the layout is unknown.
    """
    for prefix, layout in ((f"{BACKBONE}.", "a detector"), ("backbone.", "an OpenMMLab detector or classifier")):
        if any(name.startswith(prefix) for name in names):
            neck = prefix.replace("backbone", "neck")
            ours = {prefix: f"{BACKBONE}.", neck: f"{NECK}."}
            renamed = {n: new + n.removeprefix(old) for old, new in ours.items() for n in names if n.startswith(old)}
            return layout, renamed
    if "layer1.0.conv1.weight" in names:
        return TORCHVISION, {n: f"{BACKBONE}.{n}" for n in names if not n.startswith("fc.")}
    raise FD3DError(
        f"checkpoint {path} has none of the known layouts: torchvision's ResNet (layer1.0.conv1.weight), OpenMMLab's detectors and "
        f"classifiers (backbone.*, neck.*), this project's (img_backbone.*, img_neck.*); its names are {listed(list(names), 3)}"
    )


def take_pretrained(model: nn.Module, path: str | Path) -> Taken:
    """Start backbone and neck from a pretrained file, by name and shape; the layout is recognised by the file's names.

    Args:
        model: detector with ``img_backbone`` and, for a file of a detector, ``img_neck``.

    Raises:
        FD3DError: the file cannot be read, has an unknown layout or another backbone than the model.
    """
    found = read_checkpoint(path).state
    layout, ours = pretrained_names(found, path)
    state = {ours[name]: tensor for name, tensor in found.items() if name in ours}
    modules = [module for module in (BACKBONE, NECK) if hasattr(model, module) and _below(state, module)]
    source = f"checkpoint {path} ({layout})"
    if BACKBONE not in modules:
        raise FD3DError(f"{source} is for a detector with {BACKBONE}, not for {type(model).__name__}")
    check_names(_below(model.state_dict(), BACKBONE), _below(state, BACKBONE), source, offsets_needed=False)
    if layout == TORCHVISION:
        check_kind(model.get_submodule(BACKBONE), {"style": "pytorch"}, source)
    taken = _take(model, state, modules, source, [name for name in found if name not in ours])
    fit, own = len(_below(taken.names, BACKBONE)), len(_below(model.state_dict(), BACKBONE))
    if 2 * fit < own:
        raise FD3DError(f"{source} has only {fit} of {counted(own, 'tensor')} of {BACKBONE}: it is of another backbone")
    return taken


def inherit_weights(
    model: nn.Module,
    path: str | Path,
    modules: Sequence[str],
    config: Path | None = None,
    adapter: Mapping[str, Any] | None = None,
) -> Taken:
    """Start modules of a student from an expert's weights, as FD3D's released baseline starts its detection head.

    Every tensor below ``modules`` that both detectors have with the same shape is taken: a student may have fewer decoder
    layers or a smaller BEV map.

    Args:
        model: the student.
        path: checkpoint of the expert.
        modules: paths of modules.
        config: config of the expert, which tells the style of its backbone; default: ``config.py`` beside the checkpoint,
            else the checkpoint's notes.
        adapter: settings of the adapter in the student's config.

    Raises:
        FD3DError: the file cannot be read, its conventions are others or not told, a head of other classes is inherited, its backbone is of another kind, or a
            module has nothing in common with the expert.
    """
    found = read_checkpoint(path)
    check_conventions(model, found, path)
    if inherits_head(modules):
        check_trained_classes(found.training, path, adapter)
    source = f"expert's checkpoint {path}"
    if any(module.split(".")[0] == BACKBONE for module in modules):
        check_names(_below(model.state_dict(), BACKBONE), _below(found.state, BACKBONE), source)
        _check_kind(model, found, source, config or Path(path).with_name("config.py"))
    return inherit_state(model, found.state, modules, source)


def inherits_head(modules: Sequence[str]) -> bool:
    """Whether modules that a student inherits are of a head, whose last layers have a row for each class."""
    return any("head" in module for module in modules)


def inherit_state(model: nn.Module, state: Mapping[str, Tensor], modules: Sequence[str], source: str) -> Taken:
    """:func:`inherit_weights` of an expert's tensors.

    Args:
        source: expert in messages.

    Raises:
        FD3DError: a module has nothing in common with the expert.
    """
    inherited = {name: tensor for name, tensor in state.items() if any(_is_below(name, m) for m in modules)}
    return _take(model, inherited, modules, source, [name for name in state if name not in inherited])


def check_frozen(model: nn.Module, given: Collection[str], setting: str, file: Path | None = None) -> None:
    """Refuse a detector whose frozen parameters would keep random weights, or frozen norms their first statistics.

    Args:
        given: names of tensors that a file gave.
        setting: setting that names a pretrained file, in messages.
        file: what the setting is.

    Raises:
        FD3DError: frozen tensors are not given; naming the setting.
    """
    pretrained = [
        name
        for name, module in model.named_modules()
        if isinstance(cfg := getattr(module, "init_cfg", None), dict) and cfg.get("type") == "Pretrained"
    ]
    # the weights of the box code's losses are a setting
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad and n.rpartition(".")[2] != "code_weights"]
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and f"{name}.weight" in frozen:
            frozen += [f"{name}.running_mean", f"{name}.running_var"]
    lacking = [
        name for name in frozen if name not in given and not any(_is_below(name, module) for module in pretrained)
    ]
    if lacking:
        module, now = (
            lacking[0].split(".")[0],
            "" if file is None else f", now {file}, which lacks them or has other shapes,",
        )
        raise FD3DError(
            f"{module} has frozen parameters or statistics that would start from random weights and keep them ({len(lacking)}, "
            f"first {lacking[0]}); set {setting}{now} to a pretrained checkpoint, or let the detector inherit {module}"
        )


def _is_below(name: str, module: str) -> bool:
    return not module or name.startswith(f"{module}.")


def _below(names: Collection[str], module: str) -> set[str]:
    """Names below a module, without the module's own."""
    return {name.removeprefix(f"{module}.") for name in names if name.startswith(f"{module}.")}


def _check_kind(model: nn.Module, found: Checkpoint, source: str, config: Path) -> None:
    told = found.meta.get("backbone")
    if config.is_file():
        told = backbone_kind(load_config(config).model.get(BACKBONE, {}))
    if isinstance(told, dict):
        check_kind(model.get_submodule(BACKBONE), told, source)


def _take(
    model: nn.Module, state: Mapping[str, Tensor], modules: Sequence[str], source: str, left_out: Collection[str]
) -> Taken:
    """Load what fits of ``state``, in the detector's names, below ``modules``."""
    own = model.state_dict()
    taken: dict[str, Tensor] = {}
    report = [f"{source} gives"]
    for module in modules:
        # counters of steps, which files of old PyTorch versions lack and no layer with a momentum reads
        wanted = [n for n in own if _is_below(n, module) and (n in state or not n.endswith(".num_batches_tracked"))]
        fit = {name: state[name] for name in wanted if name in state and state[name].shape == own[name].shape}
        if bad := [n for n, tensor in fit.items() if own[n].is_floating_point() and not tensor.is_floating_point()]:
            raise FD3DError(f"{source}: {bad[0]} holds no floating-point numbers; copy the file again")
        if not fit and module != NECK:
            raise FD3DError(f"nothing below '{module}' fits the {source}; name a module that both detectors have")
        other = [
            f"{n} {tuple(state[n].shape)} for {tuple(own[n].shape)}" for n in wanted if n in state and n not in fit
        ]
        report.append(
            f"  {module}: {len(fit)} of {counted(len(wanted), 'tensor')}"
            + _listed("other shape", other)
            + _listed("not in the file", [n for n in wanted if n not in state])
        )
        taken |= fit
    unused = Counter(name.split(".")[0] for name in [*left_out, *(n for n in state if n not in own)])
    if unused:
        below = ", ".join(f"{count} of {name}" for name, count in unused.items())
        report.append(f"  left out: {below}")
    model.load_state_dict(taken, strict=False)
    return Taken(frozenset(taken), tuple(report))


def _listed(what: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"; {what}: {', '.join(names[:_SHOWN])}{more}"
