"""Stores at places that lack a call: plain web servers, and object stores without conditional requests."""

import functools
import http.server
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from store_schema import StoreError, StoreReader, verify
from store_schema.storage import remote
from tests.store.synthetic import SCENES, make_frame, write, writer

pytest.importorskip("aiohttp", reason="aiohttp is not installed (extra 's3')")
TOKENS = [token for tokens in SCENES.values() for token in tokens]


class Handler(http.server.SimpleHTTPRequestHandler):
    """A web server without pages of links; what it answers besides is set by the tests."""

    ranges, lengths, stamps, status = True, True, True, 0

    def send_head(self) -> Any:
        if self.status:
            self.send_error(self.status)
            return None
        try:
            data = Path(self.translate_path(self.path)).read_bytes()
        except OSError:
            self.send_error(404)
            return None
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "") if self.ranges else None
        part = data[int(asked[1]) : int(asked[2]) + 1] if asked else data
        self.send_response(206 if asked else 200)
        if self.lengths:
            self.send_header("Content-Length", str(len(part)))
        if self.stamps:
            self.send_header("ETag", f'"{hash(data)}"')
        self.end_headers()
        self.wfile.write(part) if self.command == "GET" else None
        return None

    def do_GET(self) -> None:
        self.send_head()

    def log_message(self, *args: Any) -> None:
        return


@pytest.fixture
def handler() -> type[Handler]:
    return type("Own", (Handler,), {})


@pytest.fixture
def served(tmp_path: Path, handler: type[Handler]) -> Iterator[str]:
    write(tmp_path / "s")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/s"
        server.shutdown()


@pytest.mark.parametrize("missing", ["", "lengths", "stamps"])
def test_a_store_on_a_web_server_is_read_and_verified(served, handler, missing):
    setattr(handler, missing, False)
    reader = StoreReader(served)
    assert reader.tokens == TOKENS
    for token in TOKENS:
        np.testing.assert_array_equal(reader.read(token)["query/boxes"], make_frame(token)["query/boxes"])
    assert np.array_equal(reader.constants["decoder/value_proj_bias"], np.zeros((1, 3)))
    report = verify(served)
    assert report.problems == [] and report.files > 30


@pytest.mark.parametrize("stamps", [False, True])
def test_a_store_that_is_replaced_on_a_web_server_is_noticed(served, handler, tmp_path, stamps):
    handler.stamps = stamps
    reader = StoreReader(served)
    reader.read(TOKENS[0])
    shutil.rmtree(tmp_path / "s")
    write(tmp_path / "s", "y")
    with pytest.raises(
        StoreError, match="was replaced since it was opened: expert.checkpoint_sha256 was x, now it is y"
    ):
        reader.read(TOKENS[1])


def test_what_a_web_server_lacks_is_said(served, handler, tmp_path):
    with pytest.raises(StoreError, match="can only be read, since HTTP has no way to write"), writer(served):
        pass
    with pytest.raises(StoreError, match="http.*/none cannot be read: it is not there"):
        StoreReader(served[:-1] + "none")
    reader = StoreReader(served)
    handler.ranges = False
    with pytest.raises(StoreError, match="the server gives whole files only; use one that answers range requests"):
        reader.read(TOKENS[0])
    handler.ranges, handler.status = True, 403
    with pytest.raises(StoreError, match="cannot be read: 403.*check URL and access"):
        reader.read(TOKENS[0])
    handler.status = 0
    (tmp_path / "s/query/boxes/c/0/0/0").unlink()
    with pytest.raises(StoreError, match="is damaged: query/boxes/c/0/0/0 is missing"):
        StoreReader(served).read(TOKENS[0])
    assert verify(served).problems == ["query/boxes/c/0/0/0 is gone, manifest.json lists it"]


class Memory(remote.RemoteStorage):
    """An object store in memory whose conditional requests are ignored or refused."""

    condition = "ignored"

    def create(self, name: str, data: bytes) -> None:
        if self.condition == "refused":
            raise self.trouble(
                "written", OSError("A header you provided implies functionality that is not implemented")
            )
        self.write(name, data)


@pytest.mark.parametrize("condition", ["ignored", "refused"])
def test_an_object_store_without_conditional_requests_holds_a_store(monkeypatch, condition):
    monkeypatch.setattr(remote, "LEASE_SECONDS", 0.6)
    monkeypatch.setattr(Memory, "condition", condition)
    place = Memory(f"memory://conditions-{condition}/store")
    write(place)
    assert verify(place).problems == [] and not place.exists(".lock")
    with (
        writer(place),
        pytest.raises(StoreError, match=r"is being written by process \d+ on"),
        writer(Memory(place.url)),
    ):
        pass
    place.write(".lock", b"dead 1 process 7 on nowhere")
    write(place)  # a lease that nobody renews


def test_of_two_dumps_that_start_at_once_without_conditions_one_is_refused(monkeypatch):
    """Each finds no lease and writes its own."""
    monkeypatch.setattr(remote, "LEASE_SECONDS", 0.6)
    monkeypatch.setattr(Memory, "condition", "refused")
    place, said, start = Memory("memory://race/store"), [], threading.Barrier(2)

    def hold() -> None:
        start.wait()
        try:
            with writer(place):
                said.append("held")
                done.wait(5)
        except StoreError as error:
            said.append(str(error))
            done.set()

    done = threading.Event()
    threads = [threading.Thread(target=hold) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(said) == 2 and "held" in said and any("is being written by" in line for line in said)
