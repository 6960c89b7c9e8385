"""The rows and files that a store consists of, derived from its schema, its scenes and the rows of a shard."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec
from zarr.core.buffer import Buffer

from .encoding import compressor
from .errors import StoreError
from .schema import StoreSchema
from .specs import ArraySpec
from .threads import zarr_threads

DONE = ".done"
"""Folder of the done-markers."""
ARRAYS, CONSTANTS = f"{DONE}/arrays", f"{DONE}/constants"
"""Markers of the metadata and tokens, and of the constants."""
TOKEN, LONGEST_TOKEN = 32, 64
"""Characters of a token that ``frame/token`` has room for, and that it is given room for where tokens are longer."""


@dataclass(frozen=True)
class StoreLayout:
    """Rows and files of a store; may be sent to other processes.

    Attributes:
        scenes: tokens of each scene in time order; scenes in the order of their names.
        frames_per_shard: rows of a shard, at least the longest scene.
        plan: scenes of each shard, in the order of its rows.

    Raises:
        StoreError: a scene has more frames than a shard.
    """

    schema: StoreSchema
    scenes: Mapping[str, Sequence[str]]
    frames_per_shard: int
    plan: list[list[str]] = field(init=False)

    def __post_init__(self) -> None:
        # sorted, as the manifest's JSON is, so that writer and reader derive the same rows
        scenes = {name: list(self.scenes[name]) for name in sorted(self.scenes)}
        object.__setattr__(self, "scenes", scenes)
        object.__setattr__(
            self, "frames_per_shard", int(self.frames_per_shard)
        )  # numpy's whole numbers do not fit JSON
        object.__setattr__(self, "plan", plan_shards(scenes, self.frames_per_shard))

    @cached_property
    def rows(self) -> dict[str, int]:
        """Row of each token, in row order."""
        rows = {}
        for shard in range(len(self.plan)):
            for row, token in enumerate(self.tokens(shard), shard * self.frames_per_shard):
                rows[token] = row
        return rows

    def tokens(self, shard: int) -> list[str]:
        """Tokens of a shard's frames in the order of its rows."""
        return [token for name in self.plan[shard] for token in self.scenes[name]]

    @staticmethod
    def marker(shard: int) -> str:
        """Name of a shard's done-marker."""
        return f"{DONE}/shard-{shard:05d}.json"

    def markers(self) -> list[str]:
        """Names of all shards' done-markers in shard order."""
        return [self.marker(shard) for shard in range(len(self.plan))]

    @zarr_threads()
    def metadata(self) -> dict[str, bytes]:
        """Files of the store before its first shard: metadata of every group and array, and the tokens."""
        files: dict[str, Buffer] = {}
        group = zarr.create_group(zarr.storage.MemoryStore(files), zarr_format=3)
        for spec in self.schema.arrays().values():
            zarr.create_array(**self._array_arguments(group, spec))
        tokens = self.token_rows()
        frame = zarr.create_array(
            group.store_path / "frame" / "token",
            shape=tokens.shape,
            chunks=tokens.shape,
            dtype="uint8",
            dimension_names=("frame", "character"),
            overwrite=True,
            attributes={"about": "ASCII sample token of each row, zero for padding rows"},
        )
        frame[:] = tokens
        return {name: buffer.to_bytes() for name, buffer in files.items()}

    def root_metadata(self, manifest: Mapping[str, Any]) -> bytes:
        """The root group's ``zarr.json`` with the manifest as attribute ``fd3d``, without its long lists."""
        metadata = json.loads(self.metadata()["zarr.json"])
        long = ("shards", "scenes", "files", "mixed_libraries")
        metadata["attributes"] = {"fd3d": {key: value for key, value in manifest.items() if key not in long}}
        return json.dumps(metadata, indent=2).encode()

    @zarr_threads()
    def constant_files(self, constants: Mapping[str, NDArray[Any]]) -> dict[str, bytes]:
        """Files of the arrays without a frame dimension; the root's metadata is with the other arrays."""
        files: dict[str, Buffer] = {}
        group = zarr.create_group(zarr.storage.MemoryStore(files), zarr_format=3)
        for path, spec in self.schema.constants().items():
            array = zarr.create_array(
                group.store_path / path,
                shape=spec.shape,
                chunks=spec.shape,
                dtype=spec.dtype,
                dimension_names=spec.dims,
                overwrite=True,
                attributes={"about": spec.about},
            )
            array[:] = constants[path]
        return {name: buffer.to_bytes() for name, buffer in files.items() if name != "zarr.json"}

    def token_rows(self) -> NDArray[Any]:
        """``frame/token``, (rows, 32 or as many as the longest token has) uint8: ASCII filled up with blanks, zero for padding rows."""
        width = max(TOKEN, *(len(token) for tokens in self.scenes.values() for token in tokens))
        tokens = np.zeros((self.rows_total, width), np.uint8)
        for shard in range(len(self.plan)):
            for row, token in enumerate(self.tokens(shard), shard * self.frames_per_shard):
                tokens[row] = np.frombuffer(token.encode("ascii").ljust(width), np.uint8)
        return tokens

    def _array_arguments(self, group: zarr.Group, spec: ArraySpec) -> dict[str, Any]:
        compress = compressor(spec)
        inner: list[Any] = [BytesCodec(), *([] if compress is None else [compress])]
        inner.append(Crc32cCodec())
        if spec.kind == "count":
            chunk: tuple[int, ...] = (self.frames_per_shard,)
            shard: tuple[int, ...] = (self.frames_per_shard,)
        else:
            chunk = (1, *spec.chunk)
            rounded = [-(-n // c) * c for n, c in zip(spec.shape, spec.chunk, strict=True)]
            shard = (self.frames_per_shard, *rounded)
        attributes = {
            key: value for key, value in (("units", spec.units), ("about", spec.about)) if value
        } | spec.attributes
        return dict(
            store=group.store_path / spec.path,
            shape=(self.rows_total, *spec.shape),
            chunks=shard,
            dtype=spec.dtype,
            dimension_names=("frame", *spec.dims),
            fill_value=0,
            attributes=attributes,
            serializer=ShardingCodec(chunk_shape=chunk, codecs=inner, index_location="end"),
            compressors=None,
            filters=None,
            overwrite=True,
            config={"write_empty_chunks": False},
        )

    @property
    def rows_total(self) -> int:
        """Rows, padding included."""
        return len(self.plan) * self.frames_per_shard

    def other_files(self) -> list[str]:
        """Names of the files of a finished store that are not shards: metadata, tokens, constants."""
        names = sorted(self.metadata())
        for path, spec in self.schema.constants().items():
            names += [f"{path.split('/')[0]}/zarr.json", f"{path}/zarr.json"]
            names.append("/".join([path, "c", *["0"] * len(spec.shape)]))
        return list(dict.fromkeys(names))


def check_scenes(scenes: Mapping[str, Sequence[str]], frames_per_shard: int) -> None:
    """Refuse scenes and tokens that a store cannot tell apart or has no room for.

    Raises:
        StoreError: naming the scene or token.
    """
    if isinstance(frames_per_shard, bool) or not isinstance(frames_per_shard, Integral) or frames_per_shard < 1:
        raise StoreError(f"frames_per_shard is {frames_per_shard!r}; it is a whole number of at least 1")
    if not scenes:
        raise StoreError("there are no scenes to store; choose a split or scenes with frames")
    owner: dict[str, str] = {}
    for name, tokens in scenes.items():
        if not isinstance(name, str):
            raise StoreError(f"scene {name!r} has no text for a name; rows are in the order of the scenes' names")
        if not len(tokens):
            raise StoreError(f"scene {name} has no frames; leave it out")
        for token in tokens:
            if not isinstance(token, str) or not re.fullmatch(rf"[!-~]{{1,{LONGEST_TOKEN}}}", token):
                raise StoreError(
                    f"token {token!r} of scene {name} does not fit frame/token, which holds 1 to {LONGEST_TOKEN} printable ASCII "
                    "characters without blanks; use other tokens, such as a hash of this one"
                )
            if token in owner:
                raise StoreError(
                    f"token {token} is in scene {owner[token]} and again in scene {name}; tokens are unique"
                )
            owner[token] = name


def shard_file(path: str, spec: ArraySpec, shard: int) -> str:
    """Name of the file that holds a shard of an array; the file is absent when the whole shard is zero."""
    return "/".join([path, "c", str(shard), *["0"] * len(spec.shape)])


def plan_shards(scenes: Mapping[str, Sequence[str]], frames_per_shard: int) -> list[list[str]]:
    """Scenes by shard, packed in order; a scene is never split.

    Raises:
        StoreError: a scene has more frames than a shard.
    """
    plan: list[list[str]] = []
    room = 0
    for name, tokens in scenes.items():
        if len(tokens) > frames_per_shard:
            raise StoreError(
                f"scene {name} has {len(tokens)} frames, a shard {frames_per_shard}; raise frames_per_shard to at least that"
            )
        if len(tokens) > room or not plan:
            plan.append([])
            room = frames_per_shard
        plan[-1].append(name)
        room -= len(tokens)
    return plan
