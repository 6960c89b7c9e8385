"""The rooms of the code: which way imports point, and how long files are."""

import re
from pathlib import Path

import pytest

from tests.imports import imports

CODE = ("pipeline", "stages", "store_schema", "benchmarks", "tests")


@pytest.fixture(scope="module")
def arrows(project: Path) -> dict[str, set[str]]:
    """Files by name, with the files that each imports at any level."""
    files = [file for folder in CODE for file in (project / folder).rglob("*.py")]
    named = {file: file.relative_to(project).as_posix() for file in files}
    # a package's file is not what an import of its parts wants, and its own imports point into the package
    return {
        name: {named[to] for to in imports(file, project) if to in named and to != file and to.name != "__init__.py"}
        for file, name in named.items()
        if file.name != "__init__.py"
    }


@pytest.fixture(scope="module")
def packages(project: Path) -> dict[str, set[str]]:
    """Files by name, with the packages that each imports itself, as in ``from pipeline import distill``."""
    files = [file for folder in CODE for file in (project / folder).rglob("*.py")]
    return {
        file.relative_to(project).as_posix(): {
            f"{to.parent.relative_to(project).as_posix()}/"
            for to in imports(file, project)
            if to.name == "__init__.py" and to.parent not in file.parents
        }
        for file in files
    }


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """Files that import each other in a ring; empty without one."""
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str]:
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return []
        for to in sorted(arrows.get(name, ())):
            if found := walk(to, [*path, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(arrows) if (found := walk(name, []))), [])


def test_the_search_for_circles_finds_one():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert circle({"a": {"b", "c"}, "b": {"c"}}) == []


def test_no_files_import_each_other_in_a_ring(arrows: dict[str, set[str]]):
    assert circle(arrows) == []


FORBIDDEN = (
    ("store_schema/", ("pipeline/", "stages/", "benchmarks/", "tests/")),
    ("pipeline/", ("stages/", "benchmarks/", "tests/")),
    ("benchmarks/", ("stages/", "tests/")),
    ("pipeline/dumping/", ("pipeline/distill/", "pipeline/training/")),
    ("pipeline/distill/", ("pipeline/dumping/",)),
    ("pipeline/focal/", ("pipeline/data/", "pipeline/models/", "pipeline/expert/")),
    (
        "pipeline/data/",
        ("pipeline/models/", "pipeline/expert/", "pipeline/dumping/", "pipeline/distill/", "pipeline/training/"),
    ),
    ("pipeline/models/", ("pipeline/expert/", "pipeline/dumping/", "pipeline/distill/", "pipeline/training/")),
    ("pipeline/expert/", ("pipeline/dumping/", "pipeline/distill/", "pipeline/training/")),
    ("pipeline/export/", ("pipeline/evaluation/", "pipeline/expert/", "pipeline/distill/", "pipeline/dumping/")),
    ("pipeline/training/", ("pipeline/distill/", "pipeline/dumping/", "store_schema/")),
    ("pipeline/evaluation/", ("pipeline/distill/", "pipeline/dumping/", "pipeline/training/")),
    ("tests/", ("benchmarks/",)),
    ("store_schema/reader.py", ("store_schema/writer.py", "store_schema/shards.py")),
    ("store_schema/verify.py", ("store_schema/writer.py", "store_schema/shards.py")),
)
"""Rooms, and rooms that they may not import."""


@pytest.mark.parametrize(("room", "others"), FORBIDDEN, ids=lambda value: value if isinstance(value, str) else "")
def test_arrows_point_one_way(
    arrows: dict[str, set[str]], packages: dict[str, set[str]], room: str, others: tuple[str, ...]
):
    wrong = [
        f"{name} -> {to}"
        for name, targets in [*arrows.items(), *packages.items()]
        if name.startswith(room) and not name.startswith("tests/benchmarks/")  # these test them
        for to in targets
        if to.startswith(others)
    ]
    assert not wrong


def test_no_file_does_several_jobs(project: Path):
    for folder, most in (("pipeline", 350), ("store_schema", 350), ("stages", 59)):
        for file in (project / folder).rglob("*.py"):
            lines = len(file.read_text().splitlines())
            assert lines <= most, f"{file.relative_to(project)} has {lines} lines"


def test_no_loose_file_at_the_top_of_the_library(project: Path):
    loose = {file.name for file in (project / "pipeline").glob("*.py")}
    assert loose == {"__init__.py", "errors.py", "files.py", "profile.py", "settings.py"}
    assert not list((project / "pipeline").rglob("utils*"))


def test_no_import_hides_in_a_call(project: Path):
    """Only the methods are loaded by name: the checks of rooms and of dvc.yaml see no other such import."""
    for folder in ("pipeline", "stages", "store_schema"):
        for file in (project / folder).rglob("*.py"):
            if file.relative_to(project).as_posix() != "pipeline/distill/methods/__init__.py":
                assert not re.search(r"import_module|__import__", file.read_text()), file
