"""The settings reference, ``docs/settings.md``, from the dataclasses that the profile is parsed into.

``python -m pipeline.report.settings`` writes the page; ``--check`` only says whether the page is up to date.
"""

import ast
import dataclasses
import inspect
import sys
import typing
from pathlib import Path
from typing import Any

from pipeline.data.augment import Augment
from pipeline.data.world.config import WorldConfig
from pipeline.distill.geometry_settings import GeometrySettings
from pipeline.distill.settings import METHODS, DistillSettings, PlainSettings
from pipeline.dumping.settings import ClusterSettings, DumpSettings
from pipeline.files import write_atomically
from pipeline.focal.rule import FocalRule
from pipeline.profile import DataSettings, ExpertSettings, Published, Scores, StudentSettings
from pipeline.training.settings import RunSettings, Schedule

PAGE = Path("docs/settings.md")
HEAD = """# Settings

Written by `python -m pipeline.report.settings` from the dataclasses that own the settings. All settings are in `params.yaml`, the profile, except for
the last two sections, which are in a detector's config. A setting that is not listed here is refused by every command.
"""
SECTIONS: tuple[tuple[str, Any], ...] = (
    ("data", DataSettings),
    ("world", WorldConfig),
    ("families.FAMILY.expert", ExpertSettings),
    ("families.FAMILY.apprentice", StudentSettings),
    ("families.FAMILY.expert.train, families.FAMILY.apprentice.train", RunSettings),
    ("families.FAMILY.published", Published),
    ("families.FAMILY.published.ROLE", Scores),
    ("focal, distill.rule", FocalRule),
    ("dump", DumpSettings),
    ("dump.cluster", ClusterSettings),
    ("distill, families.FAMILY.distill", DistillSettings),
    ("distill.geometry", GeometrySettings),
    ("methods.plain", PlainSettings),
    *((f"methods.{name}", kind) for name, kind in METHODS.items() if kind is not DistillSettings),
    ("schedule (of a config)", Schedule),
    ("augment (of a config)", Augment),
)


def documented(kind: Any) -> dict[str, str]:
    """Docstring of every field of a settings dataclass and of its bases, by name."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        body = ast.parse(inspect.getsource(base)).body[0].body  # type: ignore[attr-defined]
        for field, text in zip(body, body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                found[ast.unparse(field.target)] = " ".join(str(text.value.value).split())
    return found


def section(name: str, kind: Any) -> list[str]:
    """Lines of one dataclass: the docstring, and a row per setting."""
    texts, hints = documented(kind), typing.get_type_hints(kind)
    rows = []
    for field in dataclasses.fields(kind):
        if (kind, field.name) == (DumpSettings, "rule"):  # the profile's section focal
            continue
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = {} if field.default_factory is dict else f"see `{field.name}`"
        shown = "required" if default is dataclasses.MISSING else _plain(default)
        rows.append(f"| `{field.name}` | {_type(hints[field.name])} | {shown} | {_prose(texts[field.name])} |")
    about = " ".join((inspect.getdoc(kind) or "").split())
    head = ["| setting | type | default | meaning |", "|---|---|---|---|"]
    return [f"## {name}", "", _prose(about), "", *head, *rows, ""]


def _type(hint: Any) -> str:
    if typing.get_origin(hint) is dict:
        return "mapping"
    if isinstance(hint, type):
        return {float: "number", int: "whole number", bool: "true or false", str: "text", Path: "path"}.get(
            hint, "mapping"
        )
    inner = [kind for kind in typing.get_args(hint) if kind not in (type(None), Ellipsis)]
    return f"list of {_type(inner[0])}s" if typing.get_origin(hint) is tuple else f"{_type(inner[0])} or null"


def _plain(value: Any) -> str:
    if isinstance(value, str) and value.startswith("see "):
        return value
    if value == {}:
        return "`{}`"
    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return f"`{list(value)}`" if isinstance(value, tuple) else f"`{shown}`"


def _prose(text: str) -> str:
    """reStructuredText of docstrings as Markdown."""
    for role in (":func:", ":mod:", ":class:", ":meth:"):
        text = text.replace(role, "")
    return text.replace("`~", "`").replace("``", "`").replace("|", "\\|")


def page() -> str:
    """The whole page."""
    lines = [line for name, kind in SECTIONS for line in section(name, kind)]
    return HEAD + "\n" + "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Write the page, or with ``--check`` compare it."""
    if "--check" in sys.argv[1:]:
        if not PAGE.is_file() or PAGE.read_text() != page():
            sys.exit(f"{PAGE} is not up to date; run 'python -m pipeline.report.settings'")
        return
    write_atomically(PAGE, lambda file: file.write(page()))


if __name__ == "__main__":
    main()
