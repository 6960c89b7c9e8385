"""Every message of the store and the dump has a row in docs/troubleshooting.md, and every row a message."""

import ast
import re
from pathlib import Path

ERRORS = ("StoreError", "OtherStoreError", "FD3DError")
CODE = (
    "store_schema",
    "pipeline/dumping",
    "pipeline/data/workers.py",
    "pipeline/data/images.py",
    "pipeline/expert/load.py",
    "pipeline/expert/rows.py",
)


def template(node: ast.expr) -> str:
    """The text of a message with … for what is filled in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return re.sub("…+", "…", "".join(template(part) for part in node.values))
    return "…"


def messages(project: Path) -> set[str]:
    found = set()
    for place in CODE:
        for file in [project / place] if place.endswith(".py") else (project / place).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ERRORS and node.args:
                    found.add(template(node.args[0]))
    return found - {"…"}  # lines that were made elsewhere


def test_every_message_is_explained_and_every_explanation_has_its_message(project):
    page = (project / "docs/troubleshooting.md").read_text()
    rows = re.findall(r"^\| `(.+?)` \|", page, flags=re.MULTILINE)
    assert len(rows) == len(set(rows))
    found = messages(project)
    assert len(found) > 80
    assert sorted(found - set(rows)) == [] and sorted(set(rows) - found) == []
