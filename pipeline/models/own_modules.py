"""Files of the modules that a config imports from outside of this project, and of what these modules import beside them."""

import ast
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

_PROJECT = Path(__file__).resolve().parents[2]
_KNOWN = [_PROJECT / name for name in ("pipeline", "stages", "store_schema")]  # stores have a digest of these anyway


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
    return "site-packages" in file.parts or any(folder in file.parents for folder in _KNOWN)


def _files(root: Path, name: str) -> Iterator[Path]:
    """Files of a dotted module below a folder, those of its packages included; none if it lies elsewhere."""
    parts = name.split(".")
    for i in range(1, len(parts)):
        if (parent := root.joinpath(*parts[:i], "__init__.py")).is_file():
            yield parent
    place = root.joinpath(*parts)
    if (place / "__init__.py").is_file():
        yield from place.rglob("*.py")
    elif (file := place.with_suffix(".py")).is_file():
        yield file


def _imports(root: Path, file: Path) -> Iterator[str]:
    """Dotted names that a file imports; ``from a import b`` may be of a module ``a.b``."""
    package = file.relative_to(root).parent.parts
    try:
        tree = ast.parse(file.read_bytes())
    except SyntaxError:  # of a file in the package that nothing imports
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            start = [*base, *(node.module.split(".") if node.module else ())]
            if start:
                yield ".".join(start)
            yield from (".".join([*start, alias.name]) for alias in node.names)
