"""Fail one call of the system after the other while a small store is dumped, read, verified, replaced and deleted.

    python -m tests.store.faults                        # every call, every error that it may have
    python -m tests.store.faults --every 20 --doing dump read

A library that is preloaded (``faults.c``) makes the n-th call of open, write, fsync, rename, flock, ... fail for the files of
the store. After each failure: the work has ended well or with one line by the error's own name; no value can be read that
was not written; the same work again ends in the same bytes as without a failure.
"""

import argparse
import ctypes
import errno
import os
import pickle
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from store_schema import StoreError, StoreReader, verify
from store_schema.coding import pack_sampling, unpack_sampling
from store_schema.storage import LocalStorage
from tests.store.synthetic import (
    CONSTANTS,
    SCENES,
    STATISTICS,
    Metadata,
    digest,
    make_frame,
    remembered_metadata,
    write,
    writer,
)

SOURCE = Path(__file__).with_name("faults.c")
SHORT = 0
"""In place of an error's number: a call that reads or writes half of what it was asked for."""
BROKEN = (errno.EIO, errno.EMFILE, errno.EACCES, errno.EINTR, errno.ENOSPC)
ERRORS = {
    "open": BROKEN,
    "list": BROKEN[:4],
    "write": (errno.ENOSPC, errno.EIO, errno.EINTR, SHORT),
    "read": (errno.EIO, errno.EINTR, SHORT),
    "fsync": (errno.ENOSPC, errno.EIO, errno.EINTR),
    "rename": (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EINTR),
    "flock": (errno.ENOLCK, errno.EIO, errno.EINTR),
    "mkdir": (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EINTR),
    "remove": (errno.EIO, errno.EACCES, errno.EINTR),
    "stat": (errno.EIO, errno.EACCES, errno.EINTR),
    "chmod": (errno.EIO, errno.EINTR),
    "close": (errno.EIO, errno.ENOSPC, errno.EINTR),
}
"""Errors by call."""
ALL = ("write", "fsync", "rename", "flock")
SECONDS = 60
"""Time after which a child process hangs."""
TOKENS = [token for tokens in SCENES.values() for token in tokens]


class Case(NamedTuple):
    """A failure: the work, the call and its number, the error, and whether all later calls fail, too."""

    doing: str
    call: str
    number: int
    error: int
    lasting: bool

    def __str__(self) -> str:
        name = errno.errorcode.get(self.error, "half")
        return f"{self.doing}: {name} at {self.call} {self.number}{' and later' if self.lasting else ''}"


class Outcome(NamedTuple):
    """How a piece of work ended: calls that failed, and the lines of its errors."""

    failures: int
    lines: list[str]


def build(folder: Path) -> Path:
    """Compile the library."""
    library = folder / "faults.so"
    compiler = os.environ.get("CC") or shutil.which("cc") or str(sysconfig.get_config_var("CC")).split()[0]
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"], check=True)
    return library


def preload(module: str, folder: Path) -> None:
    """Run a module's command line with the library preloaded, and end with its status; nothing if that is so already."""
    if "LD_PRELOAD" not in os.environ:
        environment = os.environ | {"LD_PRELOAD": str(build(folder))}
        sys.exit(subprocess.run([sys.executable, "-m", module, *sys.argv[1:]], env=environment).returncode)


# ---- work on the store at a path; each returns the lines of its errors


def dump(path: Path) -> list[str]:
    try:
        write(path)
    except StoreError as error:
        return [str(error)]
    return []


def replace(path: Path) -> list[str]:
    try:
        made = writer(path)
        made.replacing = lambda error: None
        with made as store:
            store.write_constants(CONSTANTS)
            for shard in store.pending():
                store.write_shard(shard, {token: make_frame(token) for token in store.layout.tokens(shard)})
            store.finalise(STATISTICS)
    except StoreError as error:
        return [str(error)]
    return []


def clear(path: Path) -> list[str]:
    try:
        LocalStorage(path).clear()
    except StoreError as error:
        return [str(error)]
    return []


def check(path: Path) -> list[str]:
    return verify(path).problems


def read(path: Path, through_zarr: bool = False, disarm: Callable[[], object] | None = None) -> list[str]:
    """Two epochs of reading, in which a frame that cannot be read is left out; if disarmed then, an undisturbed one.

    Raises:
        AssertionError: a value is not the one that was written.
    """
    try:
        reader = StoreReader(path)
    except StoreError as error:
        return [str(error)]
    if through_zarr:
        reader.path = None
    lines: list[str] = []
    for epoch in range(3 if disarm else 2):
        if epoch == 2 and disarm:
            disarm()
        found: list[str] = [] if epoch == 2 else lines
        for token in TOKENS:
            try:
                check_frame(reader.read(token), token)
            except StoreError as error:
                found.append(str(error))
        try:
            for name, array in reader.constants.items():
                np.testing.assert_array_equal(array, CONSTANTS[name])
        except StoreError as error:
            found.append(str(error))
        assert found is lines or not found, f"the reader does not recover: {found[0]}"
    return lines


def check_frame(frame: dict[str, Any], token: str) -> None:
    written = make_frame(token)
    written["query/sampling"] = unpack_sampling(pack_sampling(written["query/sampling"]))
    assert frame.keys() == written.keys()
    for name, array in written.items():
        np.testing.assert_array_equal(frame[name], array, err_msg=f"{name} of {token}")


READING = ("read", "zarr")
WORK: dict[str, tuple[str, Callable[[Path], list[str]]]] = {
    # the store that is there before, and the work
    "dump": ("nothing", dump),
    "resume": ("half", dump),
    "again": ("whole", dump),
    "replace": ("other", replace),
    "clear": ("whole", clear),
    "verify": ("whole", check),
    "read": ("whole", read),
    "zarr": ("whole", lambda path: read(path, through_zarr=True)),
}


class Forks:
    """Work in forks of this process, which has the library preloaded and never uses zarr, since that owns threads.

    Args:
        path: file or folder whose calls fail.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.library = path, ctypes.CDLL(os.environ["LD_PRELOAD"])

    def apart(self, work: Callable[[], Any], seconds: int = SECONDS) -> Any:
        """The result of work in a fork.

        Raises:
            AssertionError: with the traceback of an error that is no StoreError, or with the signal that ended the process.
        """
        output, input_ = os.pipe()
        child = os.fork()
        if not child:
            os.close(output)
            signal.alarm(seconds)
            warnings.simplefilter("ignore")
            try:
                answer = [True, work()]
            except BaseException:
                answer = [False, traceback.format_exc()]
            self.arm("", 0, 0, False)
            with os.fdopen(input_, "wb") as file:
                pickle.dump(answer, file)
            os._exit(0)
        os.close(input_)
        with os.fdopen(output, "rb") as file:
            said = file.read()
        status = os.waitpid(child, 0)[1]
        assert said, f"ended by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"status {status}"
        well, result = pickle.loads(said)
        assert well, result
        return result

    def arm(self, call: str, number: int, error: int, lasting: bool, log: Path | None = None) -> None:
        """Have calls on files of the store fail from now on; an empty name of a call disarms."""
        where = str(self.path) if call else ""
        arguments = [where.encode(), call.encode(), ctypes.c_long(number), error, int(lasting)]
        self.library.faults_arm(*arguments, str(log or "").encode())


class Faults(Forks):
    """Failures of work on a small store.

    Args:
        folder: folder for stores.
        metadata: see :func:`~tests.store.synthetic.remembered_metadata`; filled.
    """

    def __init__(self, folder: Path, metadata: Metadata) -> None:
        super().__init__(folder / "store")
        self.folder, self.metadata = folder, metadata
        metadata |= self.apart(self._prepare)
        self.whole = digest(folder / "whole")

    def _prepare(self) -> Metadata:
        """The stores that work begins with."""
        write(self.folder / "whole")
        write(self.folder / "half")
        (self.folder / "half/.done/shard-00001.json").unlink()
        (self.folder / "half/decoder/value_proj_weight/c/0/0/0").write_bytes(b"cut")
        write(self.folder / "other", expert="y")
        return self.metadata

    def _run(self, case: Case, log: Path | None = None) -> Outcome:
        """Work in this process with a failure."""
        failures = 0

        def disarm() -> None:
            nonlocal failures
            failures = self.library.faults_failures()
            self.arm("", 0, 0, False)

        self.arm(*case[1:], log)
        if case.doing in READING:
            lines = read(self.path, case.doing == "zarr", disarm)
        else:
            lines = WORK[case.doing][1](self.path)
        return Outcome(failures or self.library.faults_failures(), lines)

    def _set(self, doing: str) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        if (before := WORK[doing][0]) != "nothing":
            shutil.copytree(self.folder / before, self.path)

    def counts(self, doing: str) -> Counter[str]:
        """Number of calls, by name, that work makes on files of the store without a failure."""
        self._set(doing)
        log = self.folder / "calls"
        log.unlink(missing_ok=True)
        self.apart(lambda: self._run(Case(doing, "any", -1, 0, False), log))
        return Counter(line.split()[1] for line in log.read_text().splitlines())

    def tried(self, case: Case) -> str:
        """How work with a failure ended, ``well`` or ``told``.

        Raises:
            AssertionError: something is not as it should be.
        """
        self._set(case.doing)
        before = digest(self.path) if self.path.exists() else {}
        failures, lines = self.apart(lambda: self._run(case))
        assert failures, "nothing failed"
        for line in lines:
            check_line(line, case, self.path)
        changed = case.doing not in (*READING, "verify")
        after = digest(self.path) if self.path.exists() else {}
        if not changed:
            assert after == before, "reading changed the store"
        elif not lines and case.doing != "clear":
            assert after == self.whole, f"other bytes: {differing(after, self.whole)}"
        elif lines:
            self.apart(lambda: read(self.path) and None)
        if changed and (lines or case.doing == "clear"):
            again = self.apart(lambda: WORK[case.doing][1](self.path))
            assert again == [], f"the same work again: {again}"
            after = digest(self.path) if self.path.exists() else {}
            wanted = {} if case.doing == "clear" else self.whole
            assert after == wanted, f"other bytes afterwards: {differing(after, wanted)}"
        return "told" if lines else "well"


def shortened(text: str) -> str:
    """The last lines of a traceback that name the store's code, and its error."""
    lines = text.strip().splitlines()
    places = [line.strip() for line in lines if "store_schema" in line and line.strip().startswith("File")]
    return " | ".join([*places[-2:], lines[-1]])


def differing(a: dict[str, str], b: dict[str, str]) -> list[str]:
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))


def check_line(line: str, case: Case, path: Path) -> None:
    """A line names the store and the error, and takes it for nothing else.

    Raises:
        AssertionError: it does not.
    """
    assert "\n" not in line and (case.doing == "verify" or str(path) in line), line
    assert case.error not in (errno.EINTR, SHORT), f"not survived: {line}"
    assert os.strerror(case.error) in line, line
    for word in ("damaged", "delete", "checksum", "missing", "is not empty", "written by", "no store"):
        assert word not in line, line


def cases(doing: str, calls: Counter[str], every: int = 1, first: int = 0) -> Iterator[Case]:
    """Each call of some work, or one in so many, failing with an error in turn; those of :data:`ALL` with each of theirs."""
    number = 0
    for call, errors in ERRORS.items():
        for at in range(calls[call]):
            wanted = [(error, False) for error in (errors if call in ALL else errors[at % len(errors) :][:1])]
            # no call is interrupted or gives half for ever; a lasting failure is much the same from one call to the next
            if at % 3 == 0 and (error := errors[at // 3 % len(errors)]) not in (errno.EINTR, SHORT, errno.ENOLCK):
                wanted.append((error, True))
            for error, lasting in wanted:
                if number % every == first:
                    yield Case(doing, call, at, error, lasting)
                number += 1


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="try one failure in so many")
    parser.add_argument("--first", type=int, default=0, help="number of the first of them")
    parser.add_argument("--doing", nargs="*", choices=WORK, default=list(WORK))
    parser.add_argument(
        "--case", nargs="*", default=[], help="'WORK CALL NUMBER ERROR [lasting]', ERROR as EIO or half"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        preload("tests.store.faults", Path(folder))
        wrong = 0
        with remembered_metadata() as metadata:
            faults = Faults(Path(folder), metadata)
            given = [parsed(*case.split()) for case in args.case]
            for doing in dict.fromkeys(case.doing for case in given) if given else args.doing:
                start, ends, calls = time.perf_counter(), Counter[str](), faults.counts(doing)
                chosen = [case for case in given if case.doing == doing]
                for case in chosen if given else cases(doing, calls, args.every, args.first):
                    try:
                        ends[faults.tried(case)] += 1
                    except AssertionError as error:
                        ends["wrong"] += 1
                        print(f"WRONG {case}: {shortened(str(error))}", flush=True)
                wrong += ends["wrong"]
                counted = ", ".join(f"{call} {count}" for call, count in sorted(calls.items()))
                print(
                    f"{doing}: {sum(calls.values())} calls ({counted}); {sum(ends.values())} failures: {ends['well']} ended "
                    f"well, {ends['told']} in one line, {ends['wrong']} wrong; {time.perf_counter() - start:.0f} s",
                    flush=True,
                )
    sys.exit(1 if wrong else 0)


def parsed(doing: str, call: str, number: str, error: str, *lasting: str) -> Case:
    """A case from the words that name it."""
    return Case(doing, call, int(number), SHORT if error == "half" else getattr(errno, error), bool(lasting))


if __name__ == "__main__":
    main()
