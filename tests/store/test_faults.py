"""A system call that fails at any moment of dumping, reading, verifying, replacing or deleting is told and does no harm.

FD3D_FAULTS=1 python -m pytest tests/store/test_faults.py    # every call; by default one failure in 499
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EVERY = os.environ.get("FD3D_FAULTS", "499")
pytestmark = pytest.mark.timeout(600 if "FD3D_FAULTS" not in os.environ else 10_000 // int(EVERY) + 600)


def run(project: Path, *options: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "tests.store.faults", *options]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_a_call_that_fails_is_told_by_name_and_the_same_work_goes_on(project):
    status, said = run(project, "--every", EVERY, "--first", "0" if EVERY == "1" else "17")
    assert status == 0, said
    figures = re.findall(
        r"^(\w+): (\d+) calls .*; (\d+) failures: (\d+) ended well, (\d+) in one line, 0 wrong", said, re.M
    )
    assert [name for name, *_ in figures] == [
        "dump",
        "resume",
        "again",
        "replace",
        "clear",
        "verify",
        "read",
        "zarr",
    ], said
    assert all(int(calls) > 300 and int(failures) for _, calls, failures, *_ in figures), said
    assert sum(int(told) for *_, told in figures) > 2, said


WRONG_ONCE = (
    "dump open 253 EMFILE lasting",  # zarr-python reads counts for the share of cells
    "dump rename 43 EINTR",  # which Python does not repeat
    "dump mkdir 53 EINTR",
    "dump stat 7 EACCES",  # shutil.rmtree raises it, whatever it is told to ignore
    "dump close 22 EIO lasting",  # that of the lock
    "verify list 12 EIO",
    "verify open 36 EACCES lasting",  # a file that is listed and cannot be read
    "verify read 169 EIO",
    "read read 200 half",
    "read close 44 EINTR",
    "zarr close 80 EINTR",
)


def test_what_went_wrong_once(project):
    status, said = run(project, "--case", *WRONG_ONCE)
    assert status == 0, said
    assert sum(map(int, re.findall(r"; (\d+) failures:", said))) == len(WRONG_ONCE), said
