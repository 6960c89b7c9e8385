"""What a file of the project imports, read from its text."""

import ast
from pathlib import Path


def imports(file: Path, project: Path, left_out: frozenset[str] | set[str] = frozenset()) -> set[Path]:
    """Files of the project that a file imports at any level, with the packages that they lie in.

    Args:
        left_out: functions whose imports do not count.
    """
    tree, found = ast.parse(file.read_text()), set[str]()
    package = file.relative_to(project).with_suffix("").parts[:-1]
    skipped = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name in left_out]
    inside = {id(inner) for node in skipped for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in inside:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*start, *(node.module or "").split(".")]).strip(".")
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    files = set()
    for name in found:
        parts = name.split(".")
        for n in range(1, len(parts) + 1):
            base = project.joinpath(*parts[:n])
            files |= {path for path in (base / "__init__.py", base.with_suffix(".py")) if path.is_file()}
    return files
