"""Reading of PyTorch files without executing anything, mmengine's files included."""

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

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


def _forgotten(*args: object) -> None:
    """Stands for functions in mmengine's files; nothing is looked up or called."""


class _Forgotten:
    """Stands for objects in mmengine's files whose content is not read."""

    def __setstate__(self, state: object) -> None:
        pass


# What mmengine's log history and one-cycle schedule, and Lightning's hyperparameters, put into files beside plain values. Reading gives stand-ins.
_FORGOTTEN: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (_Forgotten, "mmengine.logging.history_buffer.HistoryBuffer"),
    (_Forgotten, "mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler"),
    (_forgotten, "builtins.getattr"),
    (dict, "lightning_fabric.utilities.data.AttributeDict"),
    (dict, "lightning.fabric.utilities.data.AttributeDict"),
    (dict, "pytorch_lightning.utilities.parsing.AttributeDict"),
]


def load_plain(path: str | Path) -> Any:
    """Content of a file of tensors, numpy arrays and plain values, on the CPU; log histories of mmengine are not read.

    What PyTorch says of kinds of tensors that it gives up or tries out is kept back: the caller tells which it takes.

    Raises:
        Exception: whatever torch raises for a damaged file, or for one with other objects.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return _load(path)


def _load(path: str | Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        allowed = torch.serialization.get_safe_globals()
        torch.serialization.add_safe_globals(_FORGOTTEN)
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception:
            raise error from None  # the first reading tells what is wrong with the file
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(allowed)
