"""A lock for places without locks: a file that its owner rewrites again and again."""

import os
import threading
import time
import uuid
from contextlib import suppress
from typing import Protocol

from ..errors import StoreError, check_threads
from .base import is_held

LEASE_SECONDS = 30.0
"""A lease that did not change for so long belongs to a dead process."""


class Leasable(Protocol):
    """The calls of a storage that a lease needs."""

    def create(self, name: str, data: bytes) -> None:
        """Write a new file; FileExistsError where there is one."""

    def read(self, name: str) -> bytes:
        """A whole file; FileNotFoundError without one."""

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole."""

    def delete(self, name: str) -> None:
        """Remove a file."""


class Lease:
    """A file that its owner rewrites every sixth of ``seconds``.

    The file is created only where there is none (a conditional PUT on S3 and Google Cloud Storage; a server without
    conditions gets a plain PUT, and the owner looks again a beat later). A file of another owner is watched: a change means that its owner lives, and this dump is refused; no change for
    ``seconds`` means that its owner is dead, and the lock is taken over. No clocks are compared.
    """

    def __init__(self, storage: Leasable, name: str, seconds: float) -> None:
        self.storage, self.name, self.seconds, self.beat = storage, name, seconds, seconds / 6
        self.owner = f"process {os.getpid()} on {os.uname().nodename}"
        self.secret = uuid.uuid4().hex
        self.held, self.number = True, 0
        self._acquire()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="fd3d-lease", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            self.storage.delete(self.name)
            check_threads(error)
            raise

    def _content(self) -> bytes:
        self.number += 1
        return f"{self.secret} {self.number} {self.owner}".encode()

    def _read(self) -> bytes | None:
        try:
            return self.storage.read(self.name)
        except FileNotFoundError:
            return None

    def _acquire(self) -> None:
        seen, looks = None, 0
        while looks <= 2 * self.seconds / self.beat:  # looks, not seconds: this process may sleep, too
            # read first: a server that ignores the condition of a PUT would replace what is there
            if (found := self._read()) is None:
                # there may be one that was made meanwhile, or a link that leads nowhere, which is replaced below
                with suppress(FileExistsError):
                    return self._create()
            elif seen is None:
                seen, looks = found, 0
            elif found != seen:
                raise is_held(self.storage, _owner(found))
            time.sleep(self.beat / 2)
            looks += 1
        self._write_and_wait()

    def _create(self) -> None:
        try:
            self.storage.create(self.name, self._content())
        except StoreError:  # a server that refuses conditions; one that refuses all is told by the next line
            self._write_and_wait()
        if not self._mine():
            raise is_held(self.storage)

    def _write_and_wait(self) -> None:
        """Take the lease without a condition: of several that do so at once the last to write has it."""
        self.storage.write(self.name, self._content())
        time.sleep(self.beat)
        if not self._mine():
            raise is_held(self.storage)

    def _mine(self) -> bool:
        return (self._read() or b"").startswith(self.secret.encode())

    def _renew(self) -> None:
        while self.held and not self._stop.wait(self.beat):
            with suppress(StoreError):  # the network may be back at the next beat; if not, another dump takes over
                if not self._mine():
                    self.held = False
                elif self.held:
                    self.storage.write(self.name, self._content())

    def check(self) -> None:
        """Refuse to go on when another process has taken over; the lease is read, since this process may have slept until now."""
        if self.held:
            self.held = self._mine()
        if not self.held:
            raise StoreError(
                f"store {self.storage} was taken over by another process, since this one was silent for {self.seconds:.0f} s; stop one of them"
            )

    def release(self) -> None:
        """Give the lock back, if it is still held."""
        self._stop.set()
        self._thread.join()
        if self.held and self._mine():
            self.storage.delete(self.name)


def _owner(content: bytes) -> str:
    """The owner that a lease names; a file that no dump wrote names none."""
    words = content.decode(errors="replace").split(maxsplit=2)
    return " ".join(words[2].split())[:100] if len(words) == 3 else "another process"
