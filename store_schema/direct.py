"""Rows of a store on a local disk without zarr-python's cost per array (0.5 ms, against 0.02 ms here).

A shard file is what the Zarr v3 specification says: encoded chunks in any order, then the index, an offset and a length
(uint64, little-endian) per chunk of the shard's grid in C order, then the index's CRC-32C. A chunk without an entry is all
fill value, and so is a shard without a file. Every byte that is used is checked against its CRC-32C, as zarr-python does.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numcodecs import blosc, zstd
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec

from .checksum import check_crc32c
from .encoding import MISSING, TAG, index_bytes, tag_of
from .storage.interrupted import repeated
from .storage.regular import open_regular

Entry = Mapping[str, Any]
# Shards kept open per array: some twenty arrays, and a process may open 1,024 files. The index of a large store's shard
# (48 frames of BEVFormer-Base, finest level) takes 104 kB.
_KEPT = 8
_ATTEMPTS = 3  # to read a row of a file that others write into
# Blosc's header: 16 bytes, of which the third holds flags; this one says that the bytes were copied, not compressed.
_BLOSC_HEAD, _BLOSC_COPIED = 16, 2


class ShardFile:
    """An open shard file; the file is closed when nothing refers to the object any more.

    Args:
        path: of the file.
        chunks: in the shard.
        tag: of the shard that is wanted; None accepts any shard.

    Raises:
        FileNotFoundError: there is no such shard.
        StoreError: no regular file has this name.
        ValueError: the index is damaged, or the file is another shard.
    """

    def __init__(self, path: str, chunks: int, tag: str | None = None) -> None:
        self.path, self.descriptor = path, repeated(open_regular, path)
        weakref.finalize(self, os.close, self.descriptor)
        self._stamp = self._stamped()
        self.index = self._read_index(chunks, tag)

    def _stamped(self) -> tuple[int, int]:
        facts = os.fstat(self.descriptor)  # not the time of the inode's change, which the file's removal changes too
        return facts.st_size, facts.st_mtime_ns

    @property
    def unchanged(self) -> bool:
        """Whether nobody has written into the file since it was opened, as a copy of another store over this one does."""
        return self._stamped() == self._stamp

    def _read_index(self, chunks: int, tag: str | None) -> NDArray[Any]:
        size, length = self._stamp[0], index_bytes(chunks)
        start = max(size - length - (TAG if tag else 0), 0)
        tail = self._read(size - start, start)
        data = np.frombuffer(tail, np.uint8)[-length:]
        if len(data) != length:
            raise ValueError(f"{self.path} has {size} bytes, fewer than its index of {length}")
        check_crc32c([data[:-4]], data[-4:].tobytes(), f"the index of {self.path}")
        if tag and tag_of(tail) != tag:
            raise ValueError(f"{self.path} is another shard (tag {tag_of(tail)}, the manifest says {tag})")
        return data[:-4].view("<u8").reshape(chunks, 2)

    def _read(self, length: int, offset: int) -> bytes:
        """Bytes of the file, fewer than asked for only at its end: a network file system may bring them in parts."""
        data = os.pread(self.descriptor, length, offset)
        while len(data) < length and (more := os.pread(self.descriptor, length - len(data), offset + len(data))):
            data += more
        return data

    def read_chunk(self, number: int) -> NDArray[Any] | None:
        """Encoded bytes (n,) of a chunk, checked, without their checksum; None for one that is all fill value.

        Raises:
            ValueError: the chunk is damaged.
        """
        offset, length = self.index[number].tolist()
        if offset == MISSING:
            return None
        data = np.frombuffer(self._read(length, offset), np.uint8)
        if len(data) != length:
            raise ValueError(f"{self.path} ends within chunk {number}")
        check_crc32c([data[:-4]], data[-4:].tobytes(), f"chunk {number} of {self.path}")
        return data[:-4]

    def read_raw(self, number: int, out: NDArray[Any], head: int) -> bool:
        """Read a chunk that is stored as it is, after ``head`` bytes, into bytes ``out`` (n,): no copy but the kernel's.

        Args:
            head: 0, or the size of Blosc's header, which says whether the bytes after it are compressed.

        Returns:
            False where the chunk is compressed; ``out`` is spoilt then.

        Raises:
            ValueError: the chunk is damaged.
        """
        offset, length = self.index[number].tolist()
        if length != head + len(out) + 4:
            return False
        start, stored = bytearray(head), bytearray(4)
        if os.preadv(self.descriptor, [start, out.data, stored], offset) != length:
            whole = self._read(length, offset)
            if len(whole) != length:
                raise ValueError(f"{self.path} ends within chunk {number}")
            start[:], out[:], stored[:] = whole[:head], np.frombuffer(whole[head:-4], np.uint8), whole[-4:]
        if head and not start[2] & _BLOSC_COPIED:
            return False
        check_crc32c([bytes(start), out], bytes(stored), f"chunk {number} of {self.path}")
        return True


class DirectArray:
    """Rows of one per-frame array, indexed as ``array[row]`` or ``array[row, :n]``, nothing else.

    Attributes:
        folder: the array's.
        shape: (N, ...).
        chunk: of one row: a row has ``shape[1:]`` cut into chunks along its first dimension.
        frames: rows of a shard.
        decompress: an encoded chunk into bytes (n,); None where chunks are stored raw.
        listed: what the manifest says of a shard's file, by the shard's number; a shard of which it says nothing is all zero,
            whatever lies in its place. None where there is no manifest: a shard without a file is all zero.
    """

    def __init__(
        self,
        folder: Path,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        chunk: tuple[int, ...],
        frames: int,
        decompress: Callable[[Any, Any], Any] | None,
        listed: Callable[[int], Entry | None] | None = None,
    ) -> None:
        self.listed = listed
        self.folder, self.shape, self.dtype, self.chunk, self.frames = folder, shape, dtype, chunk, frames
        self.decompress = decompress
        self.head = {None: 0, blosc.decompress: _BLOSC_HEAD}.get(decompress)
        self.per_row = -(-shape[1] // chunk[0])
        self._suffix = "/0" * (len(shape) - 1)
        self._files: dict[int, ShardFile] = {}

    @classmethod
    def of(
        cls, folder: Path, array: zarr.Array[Any], listed: Callable[[int], Entry | None] | None = None
    ) -> DirectArray | None:
        """The same array read directly; None where its layout is not one that the store's writer makes."""
        meta = array.metadata
        if meta.zarr_format != 3 or len(meta.codecs) != 1 or not isinstance(meta.codecs[0], ShardingCodec):
            return None
        sharding, keys = meta.codecs[0], meta.chunk_key_encoding.to_dict()
        inner, chunk, shard = sharding.codecs, sharding.chunk_shape, array.shards
        compressors = inner[1:-1]
        usual = (
            array.ndim > 1
            and shard is not None
            and keys == {"name": "default", "configuration": {"separator": "/"}}
            and sharding.index_location.value == "end"
            and [type(codec) for codec in sharding.index_codecs] == [BytesCodec, Crc32cCodec]
            and all(_is_plain(codec) for codec in (inner[0], sharding.index_codecs[0]))
            and isinstance(inner[-1], Crc32cCodec)
            and [type(codec) for codec in compressors] in ([], [ZstdCodec], [BloscCodec])
            and array.dtype.kind in "fiu"
            and array.fill_value == 0
            # rows have chunks of their own, cut along one dimension and in one shard
            and chunk[0] == 1
            and shard[1] == -(-array.shape[1] // chunk[1]) * chunk[1]
            and chunk[2:] == shard[2:] == array.shape[2:]
        )
        if not usual or shard is None:
            return None
        decompress = None
        if compressors:
            decompress = zstd.decompress if isinstance(compressors[0], ZstdCodec) else blosc.decompress
        return cls(folder, array.shape, array.dtype, tuple(chunk[1:]), shard[0], decompress, listed)

    def __getitem__(self, where: int | tuple[int, slice]) -> NDArray[Any]:
        """A row (shape[1:]) or its first n entries.

        Raises:
            ValueError: a chunk or the shard's index is damaged, or the file is being written into.
        """
        row, count = (where, self.shape[1]) if isinstance(where, int) else (where[0], min(where[1].stop, self.shape[1]))
        needed = -(-count // self.chunk[0])
        out = np.empty((needed * self.chunk[0], *self.shape[2:]), self.dtype)
        raw = out.reshape(needed, -1).view(np.uint8) if needed else out
        shard, place = divmod(row, self.frames)
        for _ in range(_ATTEMPTS):
            file = self._open(shard)
            if file is None:
                out[:] = 0
                return out[:count]
            try:
                self._read(file, place * self.per_row, raw)
            except ValueError:
                if file.unchanged:
                    raise
            else:
                if file.unchanged:
                    return out[:count]
            self._files.pop(shard, None)  # its index is of what was there before
        raise ValueError(f"{self.folder}/c/{shard}{self._suffix} is being written into")

    def _read(self, file: ShardFile, first: int, raw: NDArray[Any]) -> None:
        """Read chunks from number ``first`` on into rows of bytes."""
        for i in range(len(raw)):
            number = first + i
            if self.head is not None and file.read_raw(number, raw[i], self.head):
                continue
            encoded = file.read_chunk(number)
            if encoded is None:
                raw[i] = 0
            elif self.decompress is None:
                raise ValueError(f"chunk {number} of {file.path} has {len(encoded)} bytes, not {raw.shape[1]}")
            else:
                self.decompress(encoded, raw[i])

    def _open(self, shard: int) -> ShardFile | None:
        """A shard, None for one that is all zero; it stays open, since of a store that is dumped anew the old files are whole."""
        file = self._files.pop(shard, None)
        if file is None:
            entry = None if self.listed is None else self.listed(shard)
            if self.listed is not None and entry is None:
                return None
            tag = (entry or {}).get("tag")
            try:
                file = ShardFile(f"{self.folder}/c/{shard}{self._suffix}", self.frames * self.per_row, tag)
            except FileNotFoundError:
                if entry is not None:
                    raise
                return None
        self._files[shard] = file  # the last used comes last
        if len(self._files) > _KEPT:
            self._files.pop(list(self._files)[0], None)
        return file


def _is_plain(codec: Any) -> bool:
    return isinstance(codec, BytesCodec) and (codec.endian is None or codec.endian.value == "little")


def direct_arrays(
    folder: Path, arrays: Mapping[str, zarr.Array[Any]], listed: Callable[[str, int], Entry | None] | None = None
) -> dict[str, zarr.Array[Any] | DirectArray]:
    """Arrays by path, those of the usual layout read directly, others by zarr-python.

    Args:
        listed: what the manifest says of the file of an array's shard; by default any file may be absent.
    """

    def of(path: str) -> Callable[[int], Entry | None] | None:
        return None if listed is None else partial(listed, path)

    return {path: DirectArray.of(folder / path, array, of(path)) or array for path, array in arrays.items()}
