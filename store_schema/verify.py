"""All checks of a finished store that do not need the expert that made the store."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import Store

from .checksum import mismatch
from .errors import StoreError, check_threads
from .layout import DONE, StoreLayout, shard_file
from .manifest import MANIFEST, RECIPE, differing
from .reader import StoreReader
from .storage import LEASE, LOCK, TEMPORARY, Storage, open_storage
from .storage.own import is_litter, is_record
from .whole import WholeStore

Progress = Callable[[Iterable[Any], int], Iterable[Any]]


@dataclass
class Verification:
    """Problems and figures that :func:`verify` found.

    Attributes:
        problems: a line each; empty for a sound store.
        files: number of files that were read whole.
        bytes: size of those files together.
        frames: number of frames in the store.
        seconds: duration of the verification.
    """

    problems: list[str] = field(default_factory=list)
    files: int = 0
    bytes: int = 0
    frames: int = 0
    seconds: float = 0.0


def verify(
    path: str | Path | Storage,
    options: Mapping[str, Any] | None = None,
    progress: Progress = lambda items, total: items,
) -> Verification:
    """Check manifest, recipe, file list, sizes, checksums, array metadata, tokens, counts and cell numbers.

    Args:
        options: of the URL's file system, see :func:`~store_schema.storage.open_storage`.
        progress: wraps what is iterated over, given its length.

    Returns:
        The report; a problem does not end the verification, so the report lists all. Of a store that is dumped again meanwhile only that is told.
    """
    start, report = time.perf_counter(), Verification()
    storage = open_storage(path, options)
    try:
        reader = StoreReader(storage)
        stamp = reader._stamp
        layout = reader.layout
    except (StoreError, KeyError, TypeError, AttributeError) as error:
        wanting = f"{MANIFEST} lacks or has a wrong {error}" if not isinstance(error, StoreError) else str(error)
        report.problems.append(wanting)
        report.seconds = time.perf_counter() - start
        return report
    report.frames = len(reader.tokens)
    for problems in (
        _manifest_problems(reader, layout),
        _file_problems(reader, layout, report, progress),
        _metadata_problems(reader, layout),
        _content_problems(reader, layout, progress),
    ):
        try:
            report.problems.extend(problems)
        except StoreError as error:  # a file that cannot be read and may be whole
            report.problems.append(str(error))
    report.problems = list(dict.fromkeys(report.problems))  # of several checks that cannot be made for one reason
    if report.problems:  # of files that another dump deletes or writes meanwhile nothing is to be said
        try:
            reader._check_same()
            if storage.stamp(MANIFEST) != stamp:  # the same values, so files may be mended by now
                raise StoreError(f"store {storage} was dumped again while it was verified; verify it again")
        except StoreError as error:
            report.problems = [str(error)]
    report.seconds = time.perf_counter() - start
    return report


def _manifest_problems(reader: StoreReader, layout: StoreLayout) -> Iterable[str]:
    manifest, storage = reader.manifest, reader.storage
    tokens = [token for scene in manifest["scenes"].values() for token in scene]
    if len(set(tokens)) != len(tokens):
        yield f"{MANIFEST} lists tokens twice ({len(tokens) - len(set(tokens))})"
    for name, other in ((RECIPE, _json(storage, RECIPE)), ("zarr.json", _json(storage, "zarr.json"))):
        inner = other if name == RECIPE else other.get("attributes", {}).get("fd3d", {})
        whole = manifest if name == RECIPE else {key: manifest[key] for key in manifest if key != "scenes"}
        if found := differing(whole, inner):
            yield f"{name} has {found[0]} = {_short(found[2])}, {MANIFEST} {_short(found[1])}"
    shards = manifest.get("shards") or {}
    expected = [f"{shard:05d}" for shard in range(len(layout.plan))]
    if odd := sorted(set(shards) ^ set(expected)):
        yield f"{MANIFEST} lists other shards ({len(shards)}) than its scenes fill ({len(expected)}); the first that differs is {odd[0]}"


def _file_problems(reader: StoreReader, layout: StoreLayout, report: Verification, progress: Progress) -> Iterable[str]:
    """Files that are missing, too many, or not what was written."""
    storage, arrays = reader.storage, reader.schema.arrays()
    expected: dict[str, dict[str, Any]] = dict(reader.manifest.get("files") or {})
    for name in sorted(set(layout.metadata()) - set(expected)):
        yield f"{MANIFEST} does not list {name}"
    for shard, files in (reader.manifest.get("shards") or {}).items():
        known = {shard_file(path, spec, int(shard)) for path, spec in arrays.items()}
        for name in sorted(set(files) - known):
            yield f"{MANIFEST} lists {name} in shard {shard}, where it does not belong"
        expected |= files
    there = storage.list() if storage.lists else {name: entry["bytes"] for name, entry in expected.items()}
    unknown = sorted(set(there) - set(expected))
    inner = _inner_stores(storage, unknown)
    for store in inner:
        yield f"{store} is another store; move it out of this one"
    for name in unknown:
        if any(name.startswith(f"{store}/") for store in inner):
            continue
        if name.startswith(f"{TEMPORARY}/"):
            if storage.is_being_written() or not storage.exists(
                name
            ):  # a dump that renews its lease or looks for shards
                continue
            yield f"{name} was left by a killed writer; delete it"
        elif name not in (MANIFEST, RECIPE, LOCK, LEASE) and not name.startswith(f"{DONE}/") and not is_litter(name):
            yield f"{name} is not in {MANIFEST}; delete it"
    whole = []
    markers = {name for name in expected if name.startswith(f"{DONE}/")}
    if markers and not markers & there.keys():
        yield f"the folder {DONE} is missing, as after a copy without hidden files; copy it too"
    else:
        markers = set()
    for name, entry in expected.items():
        if name in markers:
            continue
        if there.get(name) != entry["bytes"]:
            yield _size_problem(storage, name, there.get(name), entry["bytes"])
        else:
            whole.append(name)
    for name, checksum in progress(storage.checksums(whole), len(whole)):
        report.files += 1
        report.bytes += there[name]
        if isinstance(checksum, StoreError):
            yield str(checksum)
        elif checksum is None:
            yield f"{name} is gone, {MANIFEST} lists it"
        elif differ := mismatch(checksum, expected[name]):
            yield f"{name} has checksum {differ[0]}, {MANIFEST} says {differ[1]}"


def _inner_stores(storage: Storage, names: Iterable[str]) -> list[str]:
    """Outermost folders of other stores, also unfinished ones, by the names of files that are not this store's."""
    found: list[str] = []
    for name in sorted(names, key=lambda name: name.count("/")):
        folder, _, file = name.rpartition("/")
        if not folder or file not in (MANIFEST, RECIPE) or any(f"{folder}/".startswith(f"{above}/") for above in found):
            continue
        if is_record(file, storage.read_many([name]).get(name, b"")):
            found.append(folder)
    return found


def _size_problem(storage: Storage, name: str, size: int | None, listed: int) -> str:
    try:
        storage.sizes([name])
    except StoreError as error:  # a folder or pipe in its place
        return str(error)
    return f"{name} is missing" if size is None else f"{name} has {size} bytes, {MANIFEST} says {listed}"


def _metadata_problems(reader: StoreReader, layout: StoreLayout) -> Iterable[str]:
    """Arrays whose shape, type, chunks, codecs, names or units are not the schema's."""
    for name, data in layout.metadata().items():
        if not name.endswith("/zarr.json"):
            continue
        found = differing(_json(reader.storage, name), json.loads(data))
        if found:
            yield f"{name} has {found[0]} = {_short(found[1])}, the schema wants {_short(found[2])}"
    for path, spec in reader.schema.constants().items():
        metadata = _json(reader.storage, f"{path}/zarr.json")
        if metadata.get("shape") != list(spec.shape) or metadata.get("data_type") != spec.dtype:
            yield f"{path}/zarr.json has shape {metadata.get('shape')}, the schema wants {list(spec.shape)} {spec.dtype}"


def _content_problems(reader: StoreReader, layout: StoreLayout, progress: Progress) -> Iterable[str]:
    """Tokens, counts and cell numbers that contradict the manifest, the schema or each other."""
    store = reader.storage.zarr_store()  # files as they are, since their checksums are reported elsewhere
    if not reader.storage.lists:  # a web server, which may not tell where a file ends
        store = WholeStore(store, reader._entry)
    try:
        tokens = np.asarray(_array(store, "frame/token")[:])
        if not np.array_equal(tokens, layout.token_rows()):
            yield f"frame/token does not hold the tokens of {MANIFEST} in its order"
    except Exception as error:
        yield f"frame/token cannot be read: {_first_line(error)}"
    used = (layout.token_rows() != 0).any(1)
    size, coverage, unread = layout.frames_per_shard, {}, False
    for path, spec in reader.schema.arrays().items():
        if spec.kind != "count":
            continue
        name, cells = path.removesuffix("/count"), spec.attributes["cells"]
        kmax = reader.schema.arrays()[f"{name}/index"].shape[0]
        try:
            counts = np.asarray(_array(store, path)[:])
            index = _array(store, f"{name}/index")
        except Exception as error:
            yield f"{path} cannot be read: {_first_line(error)}"
            unread = True
            continue
        if counts.shape != used.shape or index.shape != (layout.rows_total, kmax):
            yield f"{path} has shape {counts.shape} and {name}/index {index.shape}, the schema wants {layout.rows_total} rows"
            continue
        if (counts[~used] != 0).any() or (counts < 0).any() or (counts > kmax).any():
            yield f"{path} has counts beyond 0..{kmax}, or in padding rows"
            continue
        coverage[name] = round(float(counts.sum()) / (int(used.sum()) * cells), 5)
        for shard in progress(range(len(layout.plan)), len(layout.plan)):
            # padding rows, which may be many more, have no counts and are never read
            rows = slice(shard * size, shard * size + len(layout.tokens(shard)))
            try:
                numbers = np.asarray(index[rows]).astype(np.int64)
            except Exception as error:
                yield f"{name}/index of shard {shard} cannot be read: {_first_line(error)}"
                continue
            filled = np.arange(kmax) < counts[rows, None]
            rising = np.diff(numbers, axis=1) > 0
            if (numbers[~filled] != 0).any() or (numbers >= cells).any() or (~rising & filled[:, 1:]).any():
                yield f"{name}/index of shard {shard} does not rise within 0..{cells - 1} over its rows' counts"
    if reader.schema.layout == "focal" and not unread and coverage != reader.manifest.get("coverage"):
        yield f"{MANIFEST} has coverage {reader.manifest.get('coverage')}, the counts give {coverage}"


def _array(store: Store, path: str) -> zarr.Array[Any]:
    return zarr.open_array(store, path=path, mode="r")


def _json(storage: Storage, name: str) -> dict[str, Any]:
    """A JSON file's object; empty where there is none, which the checks report as what is missing in it.

    Raises:
        StoreError: the file may be whole and cannot be read.
    """
    try:
        content = json.loads(storage.read(name))
    except StoreError:
        raise
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _first_line(error: BaseException) -> str:
    check_threads(error)
    return (str(error).splitlines() or [""])[0] or type(error).__name__
