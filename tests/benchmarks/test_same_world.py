"""A generated world does not depend on the processor."""

from benchmarks.same_world import SETTINGS, made_under


def test_an_old_processor_makes_the_same_world_and_index():
    new, old = (made_under(SETTINGS[name], scenes=1, frames=2) for name in ("as it is", "all old"))
    assert new == old
    assert made_under({}, scenes=1, frames=1) != new
