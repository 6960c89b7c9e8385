"""Piecewise reading of JSON against the json module."""

import io
import json
import time
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


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ('{"a": "\x01"}', "Invalid control character"),
        ('{"a": 1 "b": 2}', "Expecting ',' delimiter"),
        ("{'a': 1}", "Expecting property name"),
        ('{"a": nul}', "Expecting value"),
    ],
)
def test_a_fault_within_a_row_is_found_without_the_rest_of_the_file(row: str, told: str) -> None:
    class Once(io.StringIO):
        """A file of one block, whose rest nobody may ask for."""

        reads = 0

        def read(self, size: int | None = -1, /) -> str:
            self.reads += 1
            assert self.reads == 1
            return super().read()

    good = json.dumps({"text": "x" * 50})
    stream = JSONStream(Once(f"[{good},\n{row},\n" + ",\n".join([good] * 99)))
    at = len(good) + 3
    with pytest.raises(ValueError, match=f"{told}.* at character [0-9]*$") as caught:
        list(stream.items())
    place = int(str(caught.value).rsplit(" ", 1)[1])
    assert at < place <= at + len(row) + 1


@pytest.mark.parametrize("value", ["-12345678.25e-11", '"\\ud83d\\ude00"', "true", "-Infinity", "[1, 2]", '"a\\\\b"'])
def test_values_that_a_block_cuts_anywhere_are_read(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    text = '[{"a": ' + value + '         , "b"          : ' + value + "}]"
    for block in range(1, len(text)):
        monkeypatch.setattr(json_stream, "_BLOCK", block)
        assert list(JSONStream(io.StringIO(text)).items()) == json.loads(text)


def test_a_quote_that_is_never_closed_ends_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks double, so that a value is not decoded once for every block; and no value is read without end."""
    monkeypatch.setattr(json_stream, "_BLOCK", 16)
    file = io.StringIO('[{"a": "' + "x" * 400_000)
    start = time.process_time()
    with pytest.raises(ValueError, match="Unterminated string starting at character 8"):
        list(JSONStream(file).items())
    assert time.process_time() - start < 1
    monkeypatch.setattr(json_stream, "_LONGEST", 1000)
    file.seek(0)
    with pytest.raises(ValueError, match="Unterminated string"):
        list(JSONStream(file).items())
    assert file.tell() < 4000


def test_brackets_without_end_are_refused() -> None:
    with pytest.raises(ValueError, match="brackets within brackets without end, at character 2"):
        list(JSONStream(io.StringIO("[" * 200_000)).items())
