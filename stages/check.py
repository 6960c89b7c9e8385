"""Stages ``check`` and ``start``: a profile read whole, and the files that a family's trainings start from."""

from functools import partial
from pathlib import Path
from typing import Annotated, TextIO

import typer

from pipeline.files import file_sha256, write_atomically
from pipeline.profile import RUNS, read_profile

ROLES = ("expert", "apprentice")


def check(
    family: Annotated[
        str | None, typer.Option(help="Family whose starting files are noted; default: the profile alone is read.")
    ] = None,
    params: Annotated[Path, typer.Option(help="Profile.")] = Path("params.yaml"),
) -> None:
    """Refuse what later stages would, by profile, configs and tables; with --family note what its trainings start from."""
    profile = read_profile(params)
    profile.check_checkpoints()
    pairs = [profile.family(family)] if family else [*profile.families.values()]
    from pipeline.checking.data import check_data
    from pipeline.checking.places import check_places

    check_places(profile)
    data = check_data(profile)
    from pipeline.checking.family import check_family, check_methods  # PyTorch takes seconds

    for pair in pairs:
        check_family(profile, pair, data)
    if family is None:
        check_methods(profile)
        # always the same text, so that nothing runs again because this stage did
        write_atomically(RUNS / "profile.txt", partial(_write, ["The profile was read whole.\n"]))
        print(f"{params}: {', '.join(profile.families)} on {profile.data.root}/{profile.data.version}")
        return
    (pair,) = pairs
    starts = (pair.expert.checkpoint, pair.expert.init), (pair.apprentice.init,)
    for role, files in zip(ROLES, starts, strict=True):
        lines = [f"{file_sha256(file)}  {file}\n" for file in files if file is not None]
        lines = lines or ["no file\n"]  # DVC warns of empty outputs
        write_atomically(pair.folder / f"start/{role}.txt", partial(_write, lines))
        print(f"{role} of {pair.name} starts from {', '.join(line.strip() for line in lines)}")


def _write(lines: list[str], file: TextIO) -> None:
    file.writelines(lines)
