"""Numbers of things in messages and lines: "1 frame", never "1 frames"."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import counted


@pytest.mark.parametrize(
    ("number", "noun", "words"),
    [
        (1, "frame", "1 frame"),
        (0, "frame", "0 frames"),
        (2, "image file", "2 image files"),
        (2, "box", "2 boxes"),
        (1, "category", "1 category"),
        (3, "category", "3 categories"),
        (2, "process", "2 processes"),
        (2, "class", "2 classes"),
        (2, "epoch", "2 epochs"),
    ],
)
def test_a_number_of_things_in_words(number: int, noun: str, words: str):
    assert counted(number, noun) == words


PLURAL = re.compile(r" (?!has|was|does)([a-z]+ )?(images?|boxes|queries|classes|categories|[a-z]+[^siu]s)\b")
ALWAYS_SEVERAL = (
    "attributes; the devkit's",  # more than one
    "steps); poses lead",  # at least a number of steps
    "samples differ)",  # one differs from another
    "cameras lie on their side",  # more than one
    "images)",  # more than one
    "boxes for sample",  # more than 500
    "frames to calibrate on",  # pairs
    "levels; take all",  # more than are distilled
    "tensors); take an earlier",  # a detector's
    "bytes instead of",
    "bytes, not",
    "cells, more than the capacity",
    "frames, a shard",  # more than a shard takes
)


def numbers_of_things(tree: ast.AST) -> Iterator[str]:
    """Texts behind a length in a formatted text, which begin with a plural."""
    for node in ast.walk(tree):
        for value, text in zip(node.values, node.values[1:], strict=False) if isinstance(node, ast.JoinedStr) else ():
            if not isinstance(value, ast.FormattedValue) or not isinstance(text, ast.Constant):
                continue
            behind = str(text.value)
            said = ast.unparse(value.value)
            a_length = re.search(r"\blen\(|\.sum\(|\.total\(", said) and not said.startswith("counted(")
            if a_length and PLURAL.match(behind):
                yield behind.strip()


def test_the_search_finds_a_plural_of_one():
    tree = ast.parse('f"{len(found)} frames of {store}"\nf"{counted(len(found), 1)} are"\nf"{len(found)} has"')
    assert list(numbers_of_things(tree)) == ["frames of"]


@pytest.mark.parametrize("room", ["pipeline", "stages", "store_schema"])
def test_lengths_in_messages_are_counted_in_words(project: Path, room: str):
    found = [
        f"{file.name}: {text}"
        for file in sorted((project / room).rglob("*.py"))
        for text in numbers_of_things(ast.parse(file.read_text()))
        if not text.startswith(ALWAYS_SEVERAL)
    ]
    assert found == []
