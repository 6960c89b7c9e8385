"""One distiller per file: a module's name is the method's, and its one :class:`Distiller` class is the method."""

from importlib import import_module
from pkgutil import iter_modules

from pipeline.errors import FD3DError

from ..base import Distiller


def method_names() -> list[str]:
    """All methods, in alphabetical order."""
    return sorted(module.name for module in iter_modules(__path__))


def load_method(name: str) -> type[Distiller]:
    """The distiller that file ``name`` defines, in mmdet3d's registry from then on.

    Raises:
        FD3DError: no file defines a method of this name.
    """
    if name not in method_names():
        raise FD3DError(f"unknown method '{name}'; known: plain, {', '.join(method_names())}")
    module = import_module(f"{__name__}.{name}")
    (found,) = (
        kind
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, Distiller) and kind.__module__ == module.__name__
    )
    return found
