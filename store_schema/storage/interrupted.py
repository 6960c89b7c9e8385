"""Calls that network file systems may interrupt, and that Python does not repeat by itself."""

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

Result = TypeVar("Result")


def repeated(call: Callable[..., Result], *arguments: Any) -> Result:
    """Result of a call, repeated where it is interrupted."""
    for _ in range(100):
        with suppress(InterruptedError):
            return call(*arguments)
    return call(*arguments)


def close(descriptor: int) -> None:
    """Close a file; one whose closing is interrupted is closed."""
    with suppress(InterruptedError):
        os.close(descriptor)
