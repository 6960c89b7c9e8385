"""A local folder as zarr-python reads it."""

import os
import stat
from contextlib import suppress
from typing import Any

import zarr
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype

from .interrupted import repeated
from .regular import irregular
from .trouble import ABSENT


class FolderStore(zarr.storage.LocalStore):
    """A folder whose calls are made once more where they are interrupted, and whose files are regular ones."""

    async def _open(self, **options: Any) -> None:
        with suppress(InterruptedError):
            return await super()._open(**options)
        return await super()._open(**options)

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """See :class:`zarr.storage.LocalStore`.

        Raises:
            StoreError: a pipe, which would be waited for, or anything else that is no regular file.
        """
        with suppress(*ABSENT):
            if not stat.S_ISREG(repeated(os.stat, self.root / key).st_mode):
                raise irregular(self.root / key)
        with suppress(InterruptedError):
            return await super().get(key, prototype, byte_range)
        return await super().get(key, prototype, byte_range)
