"""Checkpoints of an unfinished training: written so that a kill leaves one, and read back with the recipe that made them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.utils import apply_to

from pipeline.errors import FD3DError, counted
from pipeline.files import write_atomically
from pipeline.models.checkpoints import save_checkpoint
from pipeline.training.processes import average_buffers, tell

_NAMES, _LAST = "iter_*.pth", "last_checkpoint"
SUBMISSION = "validation.json"
"""Detections of a validation, removed after it."""


def unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """The model inside mmengine's wrapper for several processes."""
    inner = getattr(model, "module", None)
    return inner if isinstance(inner, torch.nn.Module) else model


@dataclass(frozen=True)
class Unfinished:
    """An unfinished training.

    Attributes:
        path: its newest checkpoint that can be read.
        iterations: batches that every process has taken.
        recipe: plain values that decide the training's result, by dotted name.
        workers: per process, the states of its data workers' random numbers.
    """

    path: Path
    iterations: int
    recipe: dict[str, Any]
    workers: list[list[dict[str, Any] | None]]


def find_unfinished(folder: Path) -> Unfinished | None:
    """The unfinished training in a folder; checkpoints that cannot be read are passed over, and named."""
    files = sorted(folder.glob(_NAMES), key=_number, reverse=True)
    for path in files:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            hooks, meta = content["hooks"], content["meta"]
            return Unfinished(path, meta["iter"], meta["recipe"], [own["workers"] for own in hooks["RandomStates"]])
        except (OSError, MemoryError) as error:  # the file may be whole, and is not to be given up
            raise FD3DError(
                f"checkpoint {path} cannot be opened ({error}); mend that and run the command again"
            ) from error
        except Exception as error:  # whatever a damaged file raises
            tell(f"warning: checkpoint {path} cannot be read ({type(error).__name__}); it is passed over")
    if files:
        tell(f"warning: no checkpoint in {folder} can be read; the training starts afresh")
    return None


def forget_unfinished(folder: Path) -> None:
    """Remove the checkpoints of a training, and what a kill left of one."""
    for name in (_LAST, _NAMES, f".{_NAMES}.*", "recipe.sha256", SUBMISSION, f".{SUBMISSION}.*"):
        for path in folder.glob(name):
            path.unlink(missing_ok=True)


def _number(path: Path) -> int:
    digits = path.stem.removeprefix("iter_")
    return int(digits) if digits.isdigit() else -1


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested plain values by dotted name, as JSON keeps them."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = json.loads(json.dumps(value, default=str))
    return found


def changes(made: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Settings that differ between two flat recipes, empty without one: at most three are named."""
    names = [name for name in {**wanted, **made} if made.get(name) != wanted.get(name)]
    told = ", ".join(f"{name} = {made.get(name)!r:.60}, now {wanted.get(name)!r:.60}" for name in names[:3])
    return told + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def take_up(folder: Path, recipe: Mapping[str, Any], restart: bool) -> Unfinished | None:
    """The unfinished training of a folder if the recipe is the same; one of another recipe is given up on ``restart``.

    Raises:
        FD3DError: the recipe has changed and ``restart`` is not set, naming the settings.
    """
    found = find_unfinished(folder)
    if found is None or not (told := changes(found.recipe, recipe)):
        return found
    about = (
        f"{folder} has a training stopped after {counted(found.iterations, 'iteration')} with other settings ({told})"
    )
    if not restart:
        raise FD3DError(f"{about}; set them back to go on with it, or give --restart to start afresh")
    tell(f"warning: {about}: it is deleted when this training starts")
    return None


@HOOKS.register_module()
class Checkpoints(Hook):
    """Write the state of the training at an interval; a kill at any moment leaves a whole checkpoint, if there was one.

    The new checkpoint has its name only once it is whole and on the disk; older ones are removed after that.

    Args:
        interval: iterations between checkpoints.
        recipe: flat recipe, written into each.
    """

    priority = "VERY_LOW"

    def __init__(self, interval: int, recipe: Mapping[str, Any]) -> None:
        self.interval, self.recipe = interval, dict(recipe)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Save where it is due; all processes take part, the main one writes."""
        done = runner.iter + 1
        if done % self.interval:
            return
        model = unwrapped(runner.model)
        average_buffers(model)
        hooks = {type(hook).__name__: hook.collect() for hook in runner.hooks if hasattr(hook, "collect")}
        if not is_main_process():
            return
        content = {
            "meta": {
                "iter": done,
                "epoch": 0,
                "seed": runner.seed,
                "recipe": self.recipe,
                "dataset_meta": getattr(runner.train_dataloader.dataset, "metainfo", None),
            },
            "state_dict": model.state_dict(),
            "optimizer": runner.optim_wrapper.state_dict(),
            "message_hub": {"log_scalars": {}, "runtime_info": {}, "resumed_keys": {}},
            "hooks": hooks,
        }
        folder = Path(runner.work_dir)
        path = folder / f"iter_{done}.pth"
        save_checkpoint(apply_to(content, lambda x: isinstance(x, torch.Tensor), lambda x: x.cpu()), path)
        write_atomically(folder / _LAST, lambda file: file.write(path.name))
        for old in folder.glob(_NAMES):
            if old != path:
                old.unlink()
