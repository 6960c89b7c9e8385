"""Files of the modules that a config imports from outside of this project, and of what these modules import beside them."""

import ast
import hashlib
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

_PROJECT = Path(__file__).resolve().parents[2]
_KNOWN = [_PROJECT / name for name in ("pipeline", "stages", "store_schema")]  # stores have a digest of these anyway
_KNOWN += [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")]
_LONGEST = 1 << 20
"""Bytes of a file that is parsed; longer ones are tables, which take a second and 130 MB of memory each MB: see :data:`_IMPORT`."""
_IMPORT = re.compile(
    rb"(?:^|[;:])[ \t]*("
    rb"from[ \t]*[.\w][.\w \t]*[ \t.]import\b[ \t]*(?:\((?:[^)#]|#[^\n]*)*\)|[^\n#;(]*)|import[ \t]+[^\n#;]*)",
    re.MULTILINE,
)
"""What may be an import in the text of a table: one in a string counts, too, if it names a file that is there."""


def module_sha256(name: str) -> str | None:
    """SHA-256 over the files of an imported module and of all modules that it imports from the same place.

    Imports are read from the text, so what a function imports counts too, and what is imported by a computed name does not.
    A package counts whole.

    Args:
        name: dotted; the module has been imported.

    Returns:
        hexadecimal; None for modules that are installed or of this project.
    """
    file = Path(getattr(sys.modules.get(name), "__file__", None) or "")
    if not file.is_file() or _is_not_own(file):
        return None
    root = file.parents[name.count(".") + (file.name == "__init__.py")]
    found: set[Path] = set()
    waiting = list(_files(root, name))
    while waiting:
        file = waiting.pop()
        if file not in found and not _is_not_own(file):
            found.add(file)
            waiting += [part for imported in _imports(root, file) for part in _files(root, imported)]
    total = hashlib.sha256()
    for file in sorted(found):
        total.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return total.hexdigest()


def _is_not_own(file: Path) -> bool:
    """Whether a file is an installed package's or this project's, and no module of the user's own."""
    file = file.resolve()
    installed = "site-packages" in file.parts or "dist-packages" in file.parts
    return installed or any(folder in file.parents for folder in _KNOWN)


def python_files(folder: Path) -> list[Path]:
    """Files of modules below a folder, in order of path; editors' locks and hidden folders have names with a dot first."""
    return [
        file
        for file in sorted(folder.rglob("*.py"))
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]


def _files(root: Path, name: str) -> Iterator[Path]:
    """Files of a dotted module below a folder, those of its packages included; none if it lies elsewhere."""
    parts = name.split(".")
    for i in range(1, len(parts)):
        if (parent := root.joinpath(*parts[:i], "__init__.py")).is_file():
            yield parent
    place = root.joinpath(*parts)
    if (place / "__init__.py").is_file():
        yield from python_files(place)
    elif (file := place.with_suffix(".py")).is_file():
        yield file


def _imports(root: Path, file: Path) -> Iterator[str]:
    """Dotted names that a file imports; ``from a import b`` may be of a module ``a.b``."""
    package, text = file.relative_to(root).parent.parts, file.read_bytes()
    for node in _nodes(text) if len(text) <= _LONGEST else _nodes_of_table(text):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            start = [*base, *(node.module.split(".") if node.module else ())]
            if start:
                yield ".".join(start)
            yield from (".".join([*start, alias.name]) for alias in node.names)


def _nodes(text: bytes) -> Iterator[ast.AST]:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # of a file in the package that nothing imports
        return
    yield from ast.walk(tree)


def _nodes_of_table(text: bytes) -> Iterator[ast.AST]:
    joined = re.sub(rb"\\\r?\n", b" ", text)  # lines that a backslash continues
    for found in _IMPORT.finditer(joined):
        yield from _nodes(found[1])
