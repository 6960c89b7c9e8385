"""Piecewise reading of JSON against the json module."""

import io
import json
from pathlib import Path

import pytest

from pipeline.data import json_stream
from pipeline.data.json_stream import JSONStream, rows_of

ROWS = [{"name": 'a}, {"', "numbers": [1, -2.5e-3]}, {"name": "", "inner": {"x": "]"}}, {"text": "ü\n"}]


@pytest.mark.parametrize("block", [1, 3, 1 << 20])
@pytest.mark.parametrize("indent", [None, 0, 2])
def test_rows_are_those_of_the_json_module(tmp_path: Path, monkeypatch, block: int, indent: int | None) -> None:
    monkeypatch.setattr(json_stream, "_BLOCK", block)
    (tmp_path / "rows.json").write_text(json.dumps(ROWS, indent=indent, ensure_ascii=False), encoding="utf-8")
    assert list(rows_of(tmp_path / "rows.json")) == ROWS


@pytest.mark.parametrize("text", ["[]", " [ ] ", "[\n]"])
def test_an_empty_array_has_no_rows(text: str) -> None:
    assert list(JSONStream(io.StringIO(text)).items()) == []


def test_members_of_an_object_are_walked() -> None:
    stream = JSONStream(io.StringIO(json.dumps({"meta": {"a": 1}, "results": {"t": ROWS, "u": []}}, indent=1)))
    found = {}
    for key in stream.members():
        found[key] = {k: stream.value() for k in stream.members()} if key == "results" else stream.value()
    assert found == {"meta": {"a": 1}, "results": {"t": ROWS, "u": []}}


@pytest.mark.parametrize("text", ["", "{}", '[{"a": 1}', '[{"a": 1', '[{"a": 1} {"b": 2}]', "[nothing]"])
def test_text_that_is_no_array_or_ends_early_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        list(JSONStream(io.StringIO(text)).items())
