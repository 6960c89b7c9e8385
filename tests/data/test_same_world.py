"""The same seed gives the same tables, images and index under other kernels and instructions."""

from benchmarks.same_world import OLD, made_under


def test_an_old_processor_makes_the_same_world_and_index() -> None:
    here, old = (made_under(setting, scenes=1, frames=2) for setting in ({"OPENBLAS_CORETYPE": "Haswell"}, OLD))
    assert here == old
