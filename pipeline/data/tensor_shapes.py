"""Shapes of a checkpoint's tensors, read in a moment without PyTorch and without running anything in the file."""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Shape = tuple[int, ...]
_HEAD = "pts_bbox_head."


class _Nothing:
    """Stands for every class and function that a file names but those that make tensors; takes anything and does nothing."""

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _tensor(storage: object, offset: object, size: Any, *others: object) -> Shape:
    return tuple(size)


def _parameter(data: object, *others: object) -> object:
    return data


_KNOWN = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("collections", "OrderedDict"): OrderedDict,
}


class _Reader(pickle.Unpickler):
    """Plain values, with shapes in the place of tensors."""

    def find_class(self, module: str, name: str) -> Any:
        return _KNOWN.get((module, name), _Nothing)

    def persistent_load(self, pid: object) -> None:
        return None


def tensor_shapes(path: Path) -> dict[str, Shape]:
    """Shapes by name of the tensors in a file's state dict, without the prefixes before ``pts_bbox_head``.

    Returns:
        none for a file in PyTorch's old format, a damaged one, one with other things than dense tensors by name, and one with no or
        several detectors: what is wrong with a file is for its readers to name.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            (inner,) = (name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl"))
            with archive.open(inner) as file:
                content = _Reader(file).load()
    except Exception:  # whatever a damaged or foreign file raises
        return {}
    found = content if isinstance(content, dict) else {}
    state = found.get("state_dict", found)
    return _of_detector(state if isinstance(state, dict) else {})


def _of_detector(state: Mapping[Any, Any]) -> dict[str, Shape]:
    if any(not isinstance(name, str) or type(shape) is not tuple for name, shape in state.items()):
        return {}
    shapes = {name.replace("_orig_mod.", ""): shape for name, shape in state.items()}
    prefixes = {name[: name.index(_HEAD)] for name in shapes if _HEAD in name}
    if len(prefixes) != 1:
        return {}
    (prefix,) = prefixes
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
