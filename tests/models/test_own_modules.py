"""Digests of modules from outside of the project: what an adapter imports beside it counts, what is installed does not."""

import importlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.models.own_modules import module_sha256

FILES = {
    "own_adapter.py": "import numpy\nimport own_helper\nfrom pipeline.errors import FD3DError\n",
    "own_helper.py": "def load():\n    from own_package import late\n    return late\n",
    "own_package/__init__.py": "",
    "own_package/late.py": "from . import sibling\n",
    "own_package/sibling.py": "A = 1\n",
    "own_package/inner/__init__.py": "from ..sibling import A\n",
    "own_package/inner/part.py": "import beside_package\n",
    "beside_package.py": "B = 1\n",
    "not_imported.py": "C = 1\n",
    "own_package/old.py": "print 'of another Python'\n",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Iterator[Path]:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith(("own_", "beside_"))]:
        del sys.modules[name]


@pytest.mark.parametrize("name", ["own_adapter", "own_package", "own_package.inner.part", "own_package.late"])
def test_a_change_of_what_a_module_imports_changes_its_digest(folder: Path, name: str) -> None:
    importlib.import_module(name)
    before = module_sha256(name)
    counted = {
        "own_adapter": {"own_adapter.py", "own_helper.py", *[f for f in FILES if "package" in f]},
        "own_package": {f for f in FILES if "package" in f},
        "own_package.inner.part": {
            "own_package/__init__.py",
            "own_package/inner/__init__.py",
            "own_package/inner/part.py",
            "own_package/sibling.py",
            "beside_package.py",
        },
        "own_package.late": {f for f in FILES if "package" in f},  # from the package, which counts whole
    }[name]
    changed = set()
    for file, text in FILES.items():
        (folder / file).write_text(text + "# another version\n")
        if module_sha256(name) != before:
            changed.add(file)
        (folder / file).write_text(text)
    assert changed == counted and module_sha256(name) == before


def test_the_place_of_a_module_does_not_count(folder: Path, tmp_path_factory, monkeypatch) -> None:
    importlib.import_module("own_adapter")
    before = module_sha256("own_adapter")
    other = folder.rename(tmp_path_factory.mktemp("elsewhere") / "modules")
    monkeypatch.setattr(sys.modules["own_adapter"], "__file__", str(other / "own_adapter.py"))
    assert module_sha256("own_adapter") == before


@pytest.mark.parametrize("name", ["numpy", "pipeline.errors", "sys", "not.imported"])
def test_installed_modules_and_the_projects_have_none(name: str) -> None:
    importlib.import_module("pipeline.errors")
    assert module_sha256(name) is None


def test_odd_files_beside_a_module_are_no_trouble(folder: Path) -> None:
    importlib.import_module("own_package")
    before = module_sha256("own_package")
    (folder / "own_package/.#late.py").symlink_to("someone@host.1")  # an editor's lock
    (folder / "own_package/folder.py").mkdir()
    (folder / "own_package/.hidden").mkdir()
    (folder / "own_package/.hidden/late.py").write_text("old")
    assert module_sha256("own_package") == before
    (folder / "own_package/deep.py").write_text("x = " + "(" * 300 + ")" * 300)
    (folder / "own_package/null.py").write_bytes(b"x = 1\0")
    (folder / "own_package/table.py").write_text("import not_imported\nx = [" + "0, " * 500_000 + "]")
    long = module_sha256("own_package")
    (folder / "not_imported.py").write_text("changed")
    assert module_sha256("own_package") not in (long, before)


def test_the_projects_own_modules_have_none_by_way_of_a_link(folder: Path, monkeypatch) -> None:
    errors = importlib.import_module("pipeline.errors")
    (folder / "link").symlink_to(Path(str(errors.__file__)).parents[1])
    monkeypatch.setattr(errors, "__file__", str(folder / "link/pipeline/errors.py"))
    assert module_sha256("pipeline.errors") is None and module_sha256("email") is None


STATEMENTS = (
    "import beside_package",
    "import numpy, beside_package as b",
    "from beside_package import B",
    "from beside_package import (  # all )\n    A,\n    B,\n)",
    "from beside_package \\\n    import B",
    "def late():\n    import beside_package\n",
    "try: import beside_package\nexcept ImportError: pass",
    "import numpy; import beside_package",
    "from . import beside_package",
    "from .beside_package import B",
    "from.beside_package import B",
)


@pytest.mark.parametrize("size", [0, 1 << 20])
@pytest.mark.parametrize("statement", STATEMENTS)
def test_what_a_long_table_imports_counts_too(folder: Path, statement: str, size: int) -> None:
    """Tables of more than a MB are not parsed, which would take a second for each MB."""
    place = folder / "own_package" if "from." in statement.replace(" ", "") else folder
    (place / "beside_package.py").write_text("A = B = 1\n")
    rows = "    [1.25, 2.5], # a row: important\n" * (size // 30)
    (place / "own_table.py").write_text(f"TABLE = [\n{rows}]\nTEXT = 'import not_imported; a'\n{statement}\n")
    name = "own_table" if place == folder else "own_package.own_table"
    importlib.import_module(name)
    start = time.perf_counter()
    before = module_sha256(name)
    assert time.perf_counter() - start < 2
    (place / "beside_package.py").write_text("A = B = 2\n")
    assert module_sha256(name) != before
    before = module_sha256(name)
    (folder / "own_helper.py").write_text("changed")
    assert module_sha256(name) == before
