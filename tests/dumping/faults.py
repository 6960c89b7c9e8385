"""Fail calls of the system, one in so many, in a real ``fd3d dump`` of a small world: tables, images, index and store.

    python -m tests.dumping.faults                  # some forty failures
    python -m tests.dumping.faults --failures 400

After each failure: the command has ended well or with one line by the error's own name, nothing wrong can be read, and
the same command ends in the same bytes as without a failure. See ``tests/store/faults.py``.
"""

import argparse
import errno
import os
import shutil
import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

from tests.dumping.kills import make_inputs, wrong
from tests.store.crash import digest
from tests.store.faults import ERRORS, SHORT, Case, Forks, preload, shortened

SECONDS = 600


def run(forks: Forks, command: list[str], case: Case | None, log: Path | None = None) -> tuple[int, list[str]]:
    """Run the command in this process; its status, and its lines on stderr."""
    from stages import cli

    said = os.open(forks.path / "said", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.argv = ["fd3d", *command]
    if case is not None:
        forks.arm(*case[1:], log)
    try:
        cli.main()
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        forks.arm("", 0, 0, False)
        sys.stderr.flush()
    return status, (forks.path / "said").read_text().splitlines()


def check(case: Case, status: int, said: list[str]) -> None:
    """The command ended well or in one line by the error's name.

    Raises:
        AssertionError: it did not.
    """
    lines = [line for line in said if line.startswith("fd3d:")]
    assert not any(line.startswith("Traceback") for line in said), said
    if status:
        assert len(lines) == 1, f"status {status}: {said}"
        assert case.error not in (SHORT,) and os.strerror(case.error) in lines[0], lines[0]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--failures", type=int, default=40)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        preload("tests.dumping.faults", Path(folder))
        sys.exit(faults(Path(folder), args.failures))


def faults(folder: Path, failures: int) -> int:
    """Run the failures; returns the number of those that ended wrong."""
    import pipeline.dumping.dump  # noqa: F401 - so that forks do not import it
    import pipeline.expert.load  # noqa: F401

    place = folder / "place"
    place.mkdir()
    forks = Forks(place)
    command = forks.apart(lambda: make_inputs(place, 3), SECONDS)
    command = command[command.index("dump") :] + ["--out", str(place / "store"), "--workers", "0"]
    command[command.index("--cluster-workers") + 1] = "1"
    log = folder / "calls"
    status, said = forks.apart(lambda: run(forks, command, Case("", "any", -1, 0, False), log), SECONDS)
    assert status == 0, said
    want, calls = digest(place / "store"), [line.split()[1] for line in log.read_text().splitlines()]
    counts = Counter(calls)
    seen, ends, every = Counter[str](), Counter[str](), max(1, len(calls) // failures)
    print(f"{len(calls)} calls: {', '.join(f'{call} {count}' for call, count in counts.items())}", flush=True)
    for number, call in enumerate(calls):
        at, errors = seen[call], ERRORS[call]
        seen[call] += 1
        if number % every:
            continue
        error = errors[number // every % len(errors)]
        lasting = number // every % 4 == 3 and error not in (errno.EINTR, errno.ENOLCK, SHORT)
        case = Case("fd3d dump", call, at, error, lasting)
        shutil.rmtree(place / "store", ignore_errors=True)
        try:
            status, said = forks.apart(partial(run, forks, command, case), SECONDS)
            check(case, status, said)
            problems = forks.apart(lambda: wrong(place / "store"))
            assert not problems, problems
            if status:
                status, said = forks.apart(lambda: run(forks, command, None), SECONDS)
                assert status == 0, said
                ends["in one line"] += 1
            else:
                ends["well"] += 1
            assert digest(place / "store") == want, "other bytes"
        except AssertionError as error:
            ends["wrong"] += 1
            print(f"WRONG {case}: {shortened(str(error))}", flush=True)
    print(", ".join(f"{count} {end}" for end, count in ends.items()), flush=True)
    return ends["wrong"]


if __name__ == "__main__":
    main()
