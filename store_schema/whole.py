"""Files as zarr-python reads them, where none that a manifest lists may be absent: Zarr takes an absent file for zeros."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from zarr.abc.store import ByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore

from .checksum import fault
from .encoding import TAG, tag_of

Listed = Callable[[str], Mapping[str, Any] | None]


class WholeStore(WrapperStore[Store]):
    """A store of zarr-python that checks what it reads against a manifest.

    Args:
        listed: size and checksum of a file by name; None for a file that is not listed.
    """

    def __init__(self, store: Store, listed: Listed) -> None:
        super().__init__(store)
        self._listed = listed

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Contents of a file or a part of it.

        Raises:
            ValueError: the file is listed and absent, another shard, or read whole and not as it was written.
        """
        entry = self._listed(key)
        tag = entry and isinstance(byte_range, SuffixByteRequest) and entry.get("tag")
        if tag and isinstance(byte_range, SuffixByteRequest):  # a shard's index, which the tag comes before
            byte_range = SuffixByteRequest(byte_range.suffix + TAG)
        value = await self._store.get(key, prototype, byte_range)
        if tag and value is not None:
            if (found := tag_of(value[:TAG].to_bytes())) != tag:
                raise ValueError(f"{key} is another shard (tag {found}, the manifest says {tag})")
            value = value[TAG:]
        if entry is not None and (value is None or byte_range is None):
            problem = fault(None if value is None else value.to_bytes(), entry)
            if problem:
                raise ValueError(f"{key} {problem}")
        return value

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Contents of several files or parts of them, checked likewise."""
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]
