"""JSON files read piece by piece, so that a file of a gigabyte takes the memory of one row."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

_DECODE = json.JSONDecoder().raw_decode
_SPACE = re.compile(r"[ \t\r\n]*")
_BLOCK = 1 << 20
_LONGEST = 1 << 26  # characters of one value, beyond which a quote or a bracket is not closed
_CUT = 32  # characters before the end of a block, within which a number, a literal or an escape that the block cuts is an error


class JSONStream:
    """Cursor over a JSON text whose arrays and objects are walked and whose other values are decoded whole.

    Values that are decoded must be objects, arrays or strings: the end of a number cannot be told from a cut block.

    Args:
        file: text file, read in blocks.
    """

    def __init__(self, file: IO[str]) -> None:
        self.file, self.text, self.at = file, "", 0
        self._passed = 0  # characters of the file before the text

    def _more(self) -> bool:
        block = self.file.read(
            max(_BLOCK, len(self.text) - self.at)
        )  # doubled, as a value is decoded from its begin each time
        self._passed += self.at
        self.text, self.at = self.text[self.at :] + block, 0
        return bool(block)

    def _place(self, at: int) -> str:
        return f"at character {self._passed + at + 1}"

    def _peek(self) -> str:
        """Next character that is no white space, empty at the end."""
        while True:
            self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._more():
                return ""

    def _expect(self, characters: str) -> str:
        found = self._peek()
        if not found or found not in characters:
            wanted = " or ".join(characters)
            raise ValueError(
                f"{found or 'the end of the file'} stands where {wanted} is expected, {self._place(self.at)}"
            )
        self.at += 1
        return found

    def value(self) -> Any:
        """The next value, decoded.

        Raises:
            ValueError: the text is no JSON, or ends; with the place.
        """
        if not self.text.startswith("{", self.at):
            self._peek()
        while True:
            try:
                value, self.at = _DECODE(self.text, self.at)
                return value
            except json.JSONDecodeError as error:  # most often a value that the block cuts
                place = f"{error.msg.removesuffix(' at')} {self._place(error.pos)}"
                cut = error.msg.startswith("Unterminated string") or error.pos + _CUT > len(self.text)
                if not cut or len(self.text) - self.at > _LONGEST or not self._more():
                    raise ValueError(place) from error
            except ValueError as error:  # a whole number of more digits than Python reads
                raise ValueError(f"{str(error).partition(':')[0]}, in the value {self._place(self.at)}") from error
            except RecursionError as error:
                raise ValueError(f"brackets within brackets without end, {self._place(self.at)}") from error

    def items(self) -> Iterator[Any]:
        """Values of an array, one by one.

        Raises:
            ValueError: the text is no JSON array, or ends.
        """
        self._expect("[")
        if self._peek() == "]":
            self.at += 1
            return
        while True:
            yield self.value()
            if self.text.startswith(",\n", self.at):  # as tables are written; a third faster than the general way
                self.at += 2
            elif self._expect(",]") == "]":
                return

    def end(self) -> None:
        """Refuse anything but white space after the last value.

        Raises:
            ValueError: there is more.
        """
        if more := self._peek():
            raise ValueError(f"{more} stands behind the end, {self._place(self.at)}")

    def members(self) -> Iterator[str]:
        """Keys of an object; after each the caller must read the key's value from this stream.

        Raises:
            ValueError: the text is no JSON object, or ends.
        """
        self._expect("{")
        if self._peek() == "}":
            self.at += 1
            return
        while True:
            if self._peek() != '"':
                self._expect('"')
            key = self.value()
            self._expect(":")
            yield key
            if self._expect(",}") == "}":
                return


def rows_of(path: Path) -> Iterator[Any]:
    """Values of the array that a file consists of; one is in memory at a time.

    Raises:
        OSError, ValueError: the file is missing or damaged.
    """
    with open(path, encoding="utf-8-sig") as file:  # Windows tools begin a file with a mark
        stream = JSONStream(file)
        yield from stream.items()
        stream.end()
