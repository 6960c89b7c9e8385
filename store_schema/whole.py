"""Files as zarr-python reads them: exactly those that a manifest lists, since Zarr takes an absent file for zeros."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore

from .checksum import fault
from .encoding import TAG, tag_of
from .errors import StoreError

Listed = Callable[[str], Mapping[str, Any] | None]


class WholeStore(WrapperStore[Store]):
    """A store of zarr-python that checks what it reads against a manifest.

    Args:
        listed: size and checksum of a file by name; None for a file that is not listed, which is absent without being asked for.
    """

    def __init__(self, store: Store, listed: Listed) -> None:
        super().__init__(store)
        self._listed = listed

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Contents of a file or a part of it.

        Raises:
            StoreError: a server gives whole files only.
            ValueError: the file is listed and absent, another shard, or read whole and not as it was written.
        """
        if (entry := self._listed(key)) is None:
            return None
        if byte_range is None:
            value = await self._store.get(key, prototype)
            if problem := fault(None if value is None else value.to_bytes(), entry):
                raise ValueError(f"{key} {problem}")
            return value
        start, end = _place(byte_range, entry["bytes"])
        # of a shard, zarr-python reads the index by its distance from the end; the tag comes before it
        tag = entry.get("tag") if isinstance(byte_range, SuffixByteRequest) else None
        if tag:
            start = max(start - TAG, 0)
        value = await self._store.get(key, prototype, RangeByteRequest(start, end))
        if value is None or len(value) < end - start:
            raise ValueError(f"{key} is {'missing' if value is None else 'cut'}")
        if len(value) > end - start:
            raise StoreError(
                f"{key} was asked for {end - start} bytes and came with {len(value)}: the server gives whole files only; use one "
                "that answers range requests, or copy the store"
            )
        if tag:
            if (found := tag_of(value[:TAG].to_bytes())) != tag:
                raise ValueError(f"{key} is another shard (tag {found}, the manifest says {tag})")
            value = value[TAG:]
        return value

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Contents of several files or parts of them, checked likewise."""
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]


def _place(part: ByteRequest, size: int) -> tuple[int, int]:
    """First byte of a part of a file, and the one after its last."""
    if isinstance(part, SuffixByteRequest):
        return max(size - part.suffix, 0), size
    if isinstance(part, OffsetByteRequest):
        return part.offset, size
    assert isinstance(part, RangeByteRequest)
    return part.start, part.end
