"""Want of threads is told by its name: nothing is called damaged, and nothing waits for a thread that was not started."""

import subprocess
import sys
from pathlib import Path

import pytest

from store_schema import StoreError
from store_schema.storage import LOCK, LocalStorage
from store_schema.storage.lease import Lease
from tests.store.synthetic import write

TOLD = (
    "can't start new thread: raise the limit of processes (ulimit -u, or --pids-limit of a container) and run again; "
    "no file is damaged"
)
CODE = """
import faulthandler, sys, threading
from store_schema import StoreError, StoreReader, verify

faulthandler.dump_traceback_later(100, exit=True)
start, (place, url, *allowed) = threading.Thread.start, sys.argv[1:]

def refused(thread):
    if thread.name not in allowed:
        raise RuntimeError("can't start new thread")
    start(thread)

def told(call):
    try:
        print(call())
    except StoreError as error:
        print(error)

threading.Thread.start = refused
reader = StoreReader(place)
for _ in range(2):
    told(lambda: reader.read("a" * 32))
told(reader.counts)
told(lambda: reader.constants)
print(*verify(place).problems, sep="\\n")
if url:
    for _ in range(2):
        told(lambda: StoreReader(url))
threading.Thread.start = start
print(len(reader.read("a" * 32)), len(reader.constants), verify(place).problems)
"""


@pytest.mark.parametrize("allowed", [(), ("zarr_io",)], ids=["no thread", "zarr-python's only"])
@pytest.mark.parametrize("url", ["", "s3://bucket/store"], ids=["disk", "S3"])
def test_want_of_threads_is_told_and_goes_by(tmp_path: Path, project: Path, allowed: tuple[str, ...], url: str) -> None:
    if url:
        pytest.importorskip("s3fs", reason="s3fs is not installed (extra 's3')")
    write(tmp_path / "s")
    command = [sys.executable, "-c", CODE, str(tmp_path / "s"), url, *allowed]
    out = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=200)
    *refused, last = out.stdout.splitlines()
    assert refused == [TOLD] * (7 if url else 5), out.stdout + out.stderr
    assert last == "11 2 []"


def test_a_lease_that_cannot_be_renewed_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(thread: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", refused)
    with pytest.raises(StoreError, match="^can't start new thread: raise the limit"):
        Lease(LocalStorage(tmp_path), LOCK, 1)
    assert not (tmp_path / LOCK).exists()
