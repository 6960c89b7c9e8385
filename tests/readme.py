"""Commands of the README and other pages, for tests that check or run them."""

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PLACEHOLDERS = {"N": "1", "SEED": "0"}
"""Values for words that stand for numbers; any other word in capitals does as a path or a name."""


def blocks(page: Path, *languages: str) -> Iterator[str]:
    """Fenced blocks of a page in any of the languages; ``""`` is a fence without one."""
    for language, code in re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.M | re.S):
        if language in languages:
            yield code


def commands(page: Path) -> list[list[str]]:
    """Words of every command in the page's shell blocks."""
    return [words for code in blocks(page, "sh", "") for words in words_of(code)]


def words_of(code: str) -> list[list[str]]:
    """Words of every command of a block."""
    split = [shlex.split(line, comments=True) for line in code.splitlines() if line.count('"') % 2 == 0]
    return [[PLACEHOLDERS.get(word, word) for word in words if word != "&"] for words in split if words]


def section(heading: str) -> list[list[str]]:
    """Words of the commands in the README's section of this heading."""
    body = README.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    assert body, f"the README has no section '{heading}'"
    return [words for code in re.findall(r"^```sh\n(.*?)^```$", body, re.M | re.S) for words in words_of(code)]


def with_paths(words: list[str], paths: Mapping[str, object]) -> list[str]:
    """A command with other paths in place of its own; every other word stays."""
    return [str(paths.get(word, word)) for word in words]
