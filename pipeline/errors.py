"""The one exception that the command line turns into a one-line message, warnings, and numbers and names of things in messages."""

import warnings
from collections.abc import Collection
from functools import cache
from itertools import islice


@cache  # several parts of a command may find the same
def warn_once(message: str) -> None:
    """Warn of a thing once in a process."""
    warnings.warn(message, stacklevel=2)


class FD3DError(ValueError):
    """Bad input: the message names the thing that is wrong and how to mend it."""


class SettingError(FD3DError):
    """A setting's value is out of range; the message begins with the setting's name, and the reader adds the section's."""


def counted(number: int, noun: str) -> str:
    """A number of things in words: ``1 frame``, ``2 boxes``, ``0 categories``.

    Args:
        noun: of one thing, whose plural is regular.
    """
    if number == 1:
        return f"1 {noun}"
    if noun.endswith(("s", "x")):
        return f"{number} {noun}es"
    return f"{number} {noun[:-1]}ies" if noun[-1] == "y" else f"{number} {noun}s"


def listed(names: Collection[str], most: int = 5) -> str:
    """The first names of a list, and ``...`` where some are left off."""
    return ", ".join([*islice(names, most), *(["..."] if len(names) > most else [])])
