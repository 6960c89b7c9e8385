"""Warnings of commands are told from errors by their first word."""

import sys
import warnings

import pytest

from stages import cli


def test_a_warning_begins_with_the_word(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        told = warnings.formatwarning("store s was dumped with random weights", UserWarning, "file.py", 1)
        print(told, end="", file=sys.stderr)

    monkeypatch.setattr(cli, "app", command)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # set back afterwards
    with warnings.catch_warnings():
        cli.main()
    assert capsys.readouterr().err == "warning: store s was dumped with random weights\n"
