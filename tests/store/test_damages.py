"""Random damages of a finished store: no value is read that was not written, verify names them, a dump mends them.

FD3D_DAMAGES=5000 python -m pytest tests/store/test_damages.py    # 20 by default, about 0.1 s each on an idle core
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from store_schema import StoreError, StoreReader, verify
from store_schema.coding import pack_sampling, unpack_sampling
from tests.store.synthetic import CONSTANTS, SCENES, digest, make_frame, remembered_metadata, write, writer

TOKENS = [token for tokens in SCENES.values() for token in tokens]
EXAMPLES = int(os.environ.get("FD3D_DAMAGES", "20"))
pytestmark = pytest.mark.timeout(600 + EXAMPLES)  # seconds
PHASES = (Phase.generate,)  # a damage is small as it is: no time is spent on making it smaller
KINDS = ("flip", "cut", "empty", "delete", "lengthen", "other store's", "another's", "reorder")


class Stores(NamedTuple):
    """A finished store, one of other values with chunks of the same lengths, digests of the first's files, a place for copies."""

    whole: Path
    other: Path
    files: dict[str, str]
    place: Path

    @property
    def names(self) -> list[str]:
        return sorted(self.files)


class Damage(NamedTuple):
    """A file by its number, a kind, and where."""

    file: int
    kind: str
    where: int


DAMAGES = st.lists(
    st.builds(Damage, st.integers(0, 999), st.sampled_from(KINDS), st.integers(0, 1 << 20)), min_size=1, max_size=3
)


@pytest.fixture(scope="module", autouse=True)
def metadata():
    with remembered_metadata():
        yield


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    folder = tmp_path_factory.mktemp("damages")
    write(folder / "whole")
    with writer(folder / "other") as store:  # of the same recipe, as of an expert that is not deterministic
        store.write_constants({path: array + 1 for path, array in CONSTANTS.items()})
        for shard in store.pending():
            frames = {token: make_frame(token) for token in store.layout.tokens(shard)}
            for frame in frames.values():
                for name in ("bev/values", "pv/0/values", "query/features", "query/boxes"):
                    frame[name] = frame[name][::-1].copy()
            store.write_shard(shard, frames)
        store.finalise({})
    return Stores(folder / "whole", folder / "other", digest(folder / "whole"), folder / "copy")


def apply(damage: Damage, stores: Stores, path: Path) -> str:
    """Damage a file, and return its name."""
    name = stores.names[damage.file % len(stores.names)]
    file, where = path / name, damage.where
    if not file.exists():
        return name
    data = file.read_bytes()
    if damage.kind == "delete":
        file.unlink()
        return name
    if damage.kind == "flip" and data:
        bits = bytearray(data)
        bits[where // 8 % len(data)] ^= 1 << where % 8
        data = bytes(bits)
    elif damage.kind == "cut" and data:
        data = data[: where % len(data)]
    elif damage.kind == "empty":
        data = b""
    elif damage.kind == "lengthen":
        data += bytes([where % 256]) * (1 + where % 7)
    elif damage.kind == "other store's":
        data = (stores.other / name).read_bytes()
    elif damage.kind == "another's":
        # records have checksums of their own, which are right in another's place, too
        alike = [n for n in stores.names if is_record(n)] if is_record(name) else stores.names
        data = (stores.whole / alike[where % len(alike)]).read_bytes()
    elif damage.kind == "reorder":
        try:
            data = json.dumps(reordered(json.loads(data)), indent=where % 3).encode()
        except ValueError:
            return name
    file.write_bytes(data)
    return name


def is_record(name: str) -> bool:
    return name in ("manifest.json", "recipe.json") or name.startswith(".done/")


def is_same_record(name: str, path: Path, stores: Stores) -> bool:
    try:
        return is_record(name) and json.loads((path / name).read_bytes()) == json.loads(
            (stores.whole / name).read_bytes()
        )
    except (OSError, ValueError):
        return False


def reordered(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: reordered(value[key]) for key in sorted(value, key=lambda key: (len(key), key), reverse=True)}
    return [reordered(inner) for inner in value] if isinstance(value, list) else value


def written(token: str) -> dict[str, np.ndarray]:
    frame = make_frame(token)
    return frame | {"query/sampling": unpack_sampling(pack_sampling(frame["query/sampling"]))}


FRAMES = {token: written(token) for token in TOKENS}


def read(path: Path, through_zarr: bool) -> None:
    """Read all that can be read; every value is the one that was written."""
    try:
        reader = StoreReader(path)
    except StoreError:
        return
    if through_zarr:
        reader.path = None
    for token in TOKENS:
        try:
            frame = reader.read(token)
        except StoreError:
            continue
        assert frame.keys() == FRAMES[token].keys()
        for name, array in FRAMES[token].items():
            np.testing.assert_array_equal(frame[name], array, err_msg=f"{name} of {token}")
    try:
        constants = reader.constants
    except StoreError:
        return
    for name, array in CONSTANTS.items():
        np.testing.assert_array_equal(constants[name], array)


@settings(
    max_examples=EXAMPLES,
    phases=PHASES,
    deadline=None,
    database=None,
    derandomize="FD3D_DAMAGES" not in os.environ,  # the suite tries the same damages in every run
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(damages=DAMAGES, through_zarr=st.sampled_from([False] * 5 + [True]))
def test_no_damage_is_read_or_missed_and_a_dump_mends_it(stores: Stores, damages: list[Damage], through_zarr: bool):
    shutil.rmtree(stores.place, ignore_errors=True)
    path = Path(shutil.copytree(stores.whole, stores.place))
    kinds: dict[str, set[str]] = {}
    for damage in damages:
        kinds.setdefault(apply(damage, stores, path), set()).add(damage.kind)
    read(path, through_zarr)

    changed = {name for name in kinds if not same(path / name, stores.whole / name)}
    problems = verify(path).problems
    if "manifest.json" in changed or not changed:
        assert bool(problems) == bool(changed)  # without a manifest, nothing else is known
    else:
        for name in changed:
            assert any(name in problem for problem in problems), (name, problems)

    for _ in range(3):
        try:
            write(path)
            break
        except StoreError as error:
            said = str(error)
            if "no whole file says what made the store" in said:
                return
            assert "run the dump again" in said or "is not empty and no store" in said, said
            if "is not empty" in said:
                return
    have, want = digest(path), stores.files
    left = {name for name in have.keys() | want.keys() if have.get(name) != want.get(name)}
    # a record with its keys in another order or with a blank at its end is whole, and may stay; the manifest has the
    # checksums of the others' bytes
    assert all(name == "manifest.json" or is_same_record(name, path, stores) for name in left), left
    if left:
        assert verify(path).problems == []
        read(path, through_zarr)


def same(file: Path, whole: Path) -> bool:
    """Whether a file holds what was written: of the manifest, which no record lists, whatever the order of its keys."""
    if not file.exists():
        return False
    data, kept = file.read_bytes(), whole.read_bytes()
    if data == kept:
        return True
    if file.name == "manifest.json":
        try:
            return bool(json.loads(data) == json.loads(kept))
        except ValueError:
            return False
    return False
