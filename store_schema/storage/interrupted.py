"""Calls that network file systems may interrupt, and that Python does not repeat by itself."""

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import zarr
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype

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


class InterruptibleStore(zarr.storage.LocalStore):
    """A folder as zarr-python reads it, once more where a call is interrupted."""

    async def _open(self, **options: Any) -> None:
        with suppress(InterruptedError):
            return await super()._open(**options)
        return await super()._open(**options)

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """See :class:`zarr.storage.LocalStore`."""
        with suppress(InterruptedError):
            return await super().get(key, prototype, byte_range)
        return await super().get(key, prototype, byte_range)
