"""Names in messages."""

import pytest

from pipeline.errors import listed


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (0, ""),
        (1, "s0"),
        (5, "s0, s1, s2, s3, s4"),
        (6, "s0, s1, s2, s3, s4, ..."),  # one is left off
    ],
)
def test_only_names_that_are_left_off_are_hinted_at(number: int, told: str) -> None:
    names = [f"s{n}" for n in range(number)]
    assert listed(names) == listed(dict.fromkeys(names)) == told
    assert listed(names, most=6) == ", ".join(names)
