"""The settings reference."""

from dataclasses import fields
from pathlib import Path

from pipeline.report.settings import SECTIONS, documented, page


def test_the_page_is_what_the_dataclasses_say(project: Path):
    assert (project / "docs/settings.md").read_text() == page(), "run 'python -m pipeline.report.settings'"


def test_every_setting_says_what_it_means():
    for name, kind in SECTIONS:
        lacking = [field.name for field in fields(kind) if not documented(kind).get(field.name)]
        assert not lacking, f"{name}: {lacking}"
