"""``fd3d`` for tests that run many stages as processes: one process imports the libraries, every command is a fork of it.

As a program (``python -m tests.forking SOCKET``) it serves until it is killed.
"""

import json
import os
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CLIENT = """#!{python} -SE
import json, os, socket, sys

with socket.socket(socket.AF_UNIX) as connection:
    connection.connect({address!r})
    asked = json.dumps([os.getcwd(), sys.argv[1:]]).encode()
    socket.send_fds(connection, [asked], [1, 2])
    sys.exit(int(connection.recv(16)))
"""


@contextmanager
def forked_fd3d(folder: Path, project: Path) -> Iterator[Path]:
    """A folder for ``PATH`` with an ``fd3d`` that runs without the seconds of its imports."""
    address, program = folder / "fd3d.socket", folder / "fd3d"
    program.write_text(CLIENT.format(python=sys.executable, address=str(address)))
    program.chmod(0o755)
    environment = os.environ | {"PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen([sys.executable, "-m", "tests.forking", str(address)], cwd=project, env=environment)
    try:
        deadline = time.monotonic() + 300
        while not address.exists():
            assert server.poll() is None and time.monotonic() < deadline, "the server of stages did not start"
            time.sleep(0.05)
        yield folder
    finally:
        server.kill()
        server.wait()


def _serve(address: str) -> None:
    # so that no fork needs the seconds of the imports
    import matplotlib.pyplot  # noqa: F401
    import mmdet3d.models  # noqa: F401
    import nuscenes.eval.detection.evaluate  # noqa: F401
    import torch._dynamo  # noqa: F401  which the first optimiser imports

    import pipeline.dumping.dump
    import pipeline.evaluation.run
    import pipeline.report.report
    import pipeline.training.run  # noqa: F401

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{address}.new")
        listening.listen()
        os.rename(f"{address}.new", address)
        while True:
            connection, _ = listening.accept()
            asked, streams, _, _ = socket.recv_fds(connection, 1 << 16, 2)
            child = os.fork()
            if not child:
                folder, arguments = json.loads(asked)
                _run(folder, arguments, streams)
            connection.send(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())
            for descriptor in streams:
                os.close(descriptor)
            connection.close()


def _run(folder: str, arguments: list[str], streams: list[int]) -> None:
    """Run a command in this process, and end the process."""
    from stages.cli import main

    for number, descriptor in enumerate(streams, 1):
        os.dup2(descriptor, number)
    os.chdir(folder)
    # a worker would import all libraries anew
    sys.argv = ["fd3d", *arguments, *(["--workers", "0"] if arguments[0] in ("dump", "evaluate") else [])]
    status = 1
    try:
        main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else bool(end.code)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve(sys.argv[1])
