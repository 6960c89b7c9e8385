"""Writing a store so that a kill at any moment leaves nothing wrong that could be read.

The unit of work is a shard: ``frames_per_shard`` rows that hold whole scenes. Its files are written whole, and only then
a done-marker with their sizes and checksums. A reader needs the manifest, and the manifest is written when every marker
is there and every file has its checksum. What a kill leaves at each moment stands in this folder's README.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from .checksum import entry, fault, mismatch
from .codes import code_tag
from .coding import check_constants
from .coverage import stored_shares
from .errors import OtherStoreError, StoreError
from .layout import ARRAYS, CONSTANTS, StoreLayout, check_scenes
from .manifest import MANIFEST, RECIPE, fingerprint, refuse_difference, seal, unseal
from .provenance import check_markers, check_versions, found_maker, joined_versions
from .schema import StoreSchema
from .shards import ShardWriter
from .storage import Storage, open_storage


class StoreWriter:
    """Writes the shards of one store; use as a context manager, which holds the store's lock.

    Args:
        path: folder or URL of the store; created, or continued if an equal dump made it.
        manifest: what makes the store; it decides the fingerprint.
        scenes: tokens of each scene in time order.
        frames_per_shard: rows of a shard, at least the longest scene; all frames where they are fewer.
        options: of the URL's file system, see :func:`~store_schema.storage.open_storage`.
        allow_versions: continue a store whose finished shards were written with other library versions.

    Attributes:
        replacing: called before a store that another dump made is deleted; None refuses such a store.
        outdated: why the store that is there is another dump's though the manifests agree; None where it is not.

    Raises:
        StoreError: another manifest made the store, other library versions wrote a part of it, another process writes it,
            a scene is too long or empty, or a token does not fit.
    """

    replacing: Callable[[OtherStoreError], None] | None = None
    outdated: OtherStoreError | None = None

    def __init__(
        self,
        path: str | Path | Storage,
        schema: StoreSchema,
        manifest: Mapping[str, Any],
        scenes: Mapping[str, Sequence[str]],
        frames_per_shard: int,
        options: Mapping[str, Any] | None = None,
        allow_versions: bool = False,
    ) -> None:
        check_scenes(scenes, frames_per_shard)
        # a shard has room for no more rows than there are: every row costs a place in the index of each of its files
        frames_per_shard = min(frames_per_shard, sum(map(len, scenes.values())))
        self.storage, self.schema = open_storage(path, options), schema
        self.layout = StoreLayout(schema, scenes, frames_per_shard)
        self.manifest = {
            "schema_version": schema.version,
            "schema": schema.to_dict(),
            "frames_per_shard": self.layout.frames_per_shard,
            "scenes": self.layout.scenes,
            **manifest,
        }
        self._recipe, self.allow_versions = seal(self.manifest), allow_versions
        self.fingerprint = fingerprint(self.manifest)
        libraries, source = self.manifest.get("libraries") or {}, self.manifest.get("source_sha256")
        self.shards = ShardWriter(self.storage, self.layout, self.fingerprint, libraries, source)
        self._lock: Callable[[], None] | None = None
        self._held: Callable[[], None] | None = None
        self._exit = ExitStack()

    @property
    def scenes(self) -> Mapping[str, Sequence[str]]:
        """Tokens of each scene in time order; scenes in the order of their names, which is that of the rows."""
        return self.layout.scenes

    @property
    def plan(self) -> list[list[str]]:
        """Scenes of each shard."""
        return self.layout.plan

    def shard_scenes(self, shard: int) -> list[str]:
        """Scenes of one shard, in the order of its rows: an entry of :attr:`plan`, under the name of earlier revisions."""
        return self.plan[shard]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the store's lock, by :meth:`__enter__` too, so that what is found out about the store still holds when it is opened."""
        with self.storage.lock() as self._lock:
            try:
                yield
            finally:
                self._lock = None

    def __enter__(self) -> "StoreWriter":
        with ExitStack() as stack:
            self._held = self._lock or stack.enter_context(self.storage.lock())
            self.shards = replace(self.shards, held=self._check_held)
            self._open()
            self._exit = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.close()
        self._held = None

    def _check_held(self) -> None:
        if self._held is None:
            raise StoreError(f"store {self.storage} is not open for writing; use its StoreWriter as a context manager")
        self._held()

    def _open(self) -> None:
        self._check_held()  # the lock may have been taken over while the store was compared
        self._claim()
        self._sweep()
        if not self._is_whole(ARRAYS):
            self._write_marked(ARRAYS, self.layout.metadata())
        if self.pending():
            if not self.allow_versions:
                check_versions(self.storage, self.finished(), self.shards.libraries)
            # while shards are redone nothing of this store is to be read
            self._delete(MANIFEST)

    def _delete(self, *names: str) -> None:
        """Delete files of this dump, unless another one has the store by now."""
        for name in names:
            self.shards.check()
            self.storage.delete(name)

    def _sweep(self) -> None:
        self.shards.check()
        self.storage.sweep()

    def _claim(self) -> None:
        """Make the folder this dump's, by a recipe that says so."""
        try:
            has_marker = lambda: any(marker is not None for marker in self._markers())  # noqa: E731
            made_by, sound = found_maker(self.storage, self.manifest, has_marker)
            if self.outdated is not None:
                raise self.outdated
            if made_by is not None:
                refuse_difference(made_by, self.manifest, self.storage, "delete the store or choose another folder")
                check_markers(self.storage)
        except OtherStoreError as error:
            if self.replacing is None:
                raise
            self.storage.check_clearable()
            self.storage.check_writable()  # again: the look at the expert took minutes
            self.replacing(error)
            self.storage.empty(
                self._check_held
            )  # the recipe stays until another takes its place, so that a kill leaves a store
            sound = False
        if not sound:
            self._check_held()
            self.storage.write(RECIPE, self._recipe)

    def _markers(self) -> list[dict[str, Any] | None]:
        """Done-markers in shard order; None for one that is not there, of another dump or shard, or not as it was written."""
        names = self.layout.markers()
        found = self.storage.read_many(names)
        markers = [unseal(found.get(name)) for name in names]

        def is_own(shard: int, marker: dict[str, Any]) -> bool:
            kind = marker.get("fingerprint"), marker.get("shard", shard), "sums" in marker
            return kind == (self.fingerprint, shard, True)

        return [m if m is not None and is_own(shard, m) else None for shard, m in enumerate(markers)]

    def pending(self) -> list[int]:
        """Shards without a valid done-marker, which has this dump's fingerprint and codes and names files of full length."""
        markers = self._markers()
        if self.schema.code is not None and self.shards.code_tag is None and (held := self.constants()) is not None:
            self._know_codes(held)
        sizes = self.storage.sizes(name for marker in markers if marker for name in marker["files"])
        return [
            shard
            for shard, marker in enumerate(markers)
            if marker is None
            or marker.get("code") != self.shards.code_tag
            or any(sizes.get(name) != listed["bytes"] for name, listed in marker["files"].items())
        ]

    def finished(self, any_code: bool = False) -> dict[int, dict[str, Any]]:
        """Done-markers of the shards that need not be written, by number; or of all that this dump wrote, with whatever codes."""
        missing = set() if any_code else set(self.pending())
        return {i: marker for i, marker in enumerate(self._markers()) if marker is not None and i not in missing}

    def _is_whole(self, marker: str) -> bool:
        """Whether a marker of small files is there, and all of these files are as they were written."""
        return self._listed(marker, check=True) is not None

    def _listed(self, marker: str, check: bool = False) -> dict[str, Any] | None:
        """Files that a marker lists; None without a valid marker or, to be checked, with a file that is not as it was written."""
        content = unseal(self.storage.read_many([marker]).get(marker))
        if content is None or content.get("fingerprint") != self.fingerprint:
            return None
        files: dict[str, Any] = content["files"]
        if "sums" in content or (marker == ARRAYS) != ("frame/token/zarr.json" in files):  # another marker's content
            return None
        found = self.storage.read_many(files) if check else {}
        return None if check and any(fault(found.get(name), files[name]) for name in files) else files

    def _write_marked(self, marker: str, files: Mapping[str, bytes], **facts: str | None) -> None:
        """Write small files, then the marker that lists them, with further facts; nothing is to be read meanwhile."""
        self._delete(MANIFEST, marker)
        self.storage.write_all(files.items(), self.shards.watch())
        # the root group's attributes change when the store is finished
        listed = {name: entry(data) for name, data in files.items() if name != "zarr.json"}
        known = {name: fact for name, fact in facts.items() if fact is not None}
        self.shards.check()
        self.storage.write(marker, seal({"fingerprint": self.fingerprint, "files": listed} | known))

    def write_constants(self, constants: Mapping[str, NDArray[Any]], learned_by: str | None = None) -> None:
        """Arrays without a frame dimension; a resume finds them written and leaves them, or mends them.

        Args:
            learned_by: SHA-256 of the program's code that learned the codes, kept in the constants' marker.

        Raises:
            StoreError: a name, shape or value does not fit.
        """
        self._check_held()
        check_constants(self.schema, constants)
        if self._is_whole(CONSTANTS):
            if self.schema.code is not None:
                self._know_codes(self.constants() or {})
            return
        self._write_marked(CONSTANTS, self.layout.constant_files(constants), learned_by=learned_by)
        specs = self.schema.constants()
        self._know_codes({path: np.array(constants[path], spec.dtype) for path, spec in specs.items()})

    def learned_by(self) -> str | None:
        """SHA-256 of the code that learned the codes; None where the constants' marker does not tell."""
        return (unseal(self.storage.read_many([CONSTANTS]).get(CONSTANTS)) or {}).get("learned_by")

    def constants(self) -> dict[str, NDArray[Any]] | None:
        """The constants that the store has; None where these are missing or damaged."""
        if not self._is_whole(CONSTANTS):
            return None
        # array by array: the root's metadata may be damaged, which finalising mends
        store = self.storage.zarr_store()
        with self.storage.named():
            return {path: np.asarray(zarr.open_array(store, path=path, mode="r")) for path in self.schema.constants()}

    def _know_codes(self, constants: Mapping[str, NDArray[Any]]) -> None:
        """Keep the codes for the shards that are written from now on."""
        if self.schema.code is not None:
            codes = self.schema.codes(constants)
            self.shards = replace(self.shards, codes=codes, code_tag=code_tag(codes))

    def write_shard(self, shard: int, frames: Mapping[str, Mapping[str, NDArray[Any]]]) -> None:
        """Write all frames of a shard, see :meth:`ShardWriter.write`."""
        self._check_held()  # also before the store was ever open
        self.shards.write(shard, frames)

    def sums(self) -> list[dict[str, Any]]:
        """The ``sums`` that each shard's writer was given, in shard order, so that adding them up has one result."""
        return [marker["sums"] for marker in self._finished()]

    def _finished(self) -> list[dict[str, Any]]:
        """Done-markers of all shards.

        Raises:
            StoreError: shards are missing.
        """
        missing = self.pending()
        if missing:
            raise StoreError(
                f"shards of {self.storage} are not written ({len(missing)} of {len(self.layout.plan)}); run the dump again"
            )
        return [marker for marker in self._markers() if marker is not None]

    def finalise(self, statistics: Mapping[str, Any]) -> None:
        """Check every file and write the manifest, which makes the store readable; sweep temporary files.

        Raises:
            StoreError: shards are missing or damaged; the next dump redoes these shards.
        """
        self._check_held()
        try:
            self._finish(statistics)
        except StoreError:
            self.shards.check()  # files that another dump deletes are its fault, not that of URL or disk
            raise

    def _finish(self, statistics: Mapping[str, Any]) -> None:
        markers = self._finished()
        shards = {f"{shard:05d}": marker["files"] for shard, marker in enumerate(markers)}
        small = {marker: self._listed(marker) or {} for marker in (ARRAYS, CONSTANTS)}
        lists = small | {self.layout.marker(shard): marker["files"] for shard, marker in enumerate(markers)}
        self._check_files(lists)
        full = (
            self.manifest
            | joined_versions(markers)
            | {"statistics": dict(statistics), "coverage": stored_shares(self.storage, self.layout)}
        )
        root = self.layout.root_metadata(full)
        records = self.storage.read_many([RECIPE, *lists])
        files = {"zarr.json": entry(root)} | {name: entry(data) for name, data in records.items()}
        content = full | {"shards": shards, "files": dict(sorted((files | small[ARRAYS] | small[CONSTANTS]).items()))}
        sealed = seal(content, indent=1)
        self.shards.check()
        self.storage.write("zarr.json", root)
        self._sweep()  # before the store becomes readable, so that a kill in between leaves it tidy
        self.shards.check()
        self.storage.write(MANIFEST, sealed)
        self._sweep()  # orphans of a killed dump may have gone on writing meanwhile

    def _check_files(self, lists: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
        """Compare all files with the lists of the markers, by the markers' names."""
        expected = {name: (marker, files[name]) for marker, files in lists.items() for name in files}
        damaged = []
        for name, checksum in self.storage.checksums(expected):
            if isinstance(checksum, StoreError):  # the file may be whole
                raise checksum
            if checksum is None or mismatch(checksum, expected[name][1]):
                damaged.append(name)
        if damaged:
            redone = sorted({expected[name][0] for name in damaged})
            # one marker stays, by which a store is told from a copy without any; its files are compared when the store is opened
            self._delete(MANIFEST, *(marker for marker in redone if marker != ARRAYS))
            raise StoreError(
                f"{damaged[0]} of {self.storage} does not have the checksum it was written with (such files: {len(damaged)}); "
                f"run the dump again, it writes the files of their markers ({len(redone)}) anew"
            )
