"""The check that cached equals online, on a few steps."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.online import FINEST_FIRST, compare, largest_difference, make_world
from pipeline.distill.settings import DistillSettings
from pipeline.focal.rule import FocalRule
from pipeline.profile import ExpertSettings, Family, StudentSettings


def test_the_largest_difference_is_relative_to_the_wanted_curve():
    wanted, found = {"loss": np.array([1.0, 2.0, 4.0, 4.0])}, {"loss": np.array([1.0, 2.2, 4.0, 3.0])}
    assert largest_difference(found, wanted, 1)["loss"] == pytest.approx(0.25)
    assert largest_difference(found, wanted, 2)["loss"] == pytest.approx(0.125)  # 3.5 for 4


@pytest.mark.parametrize("family", ["bevformer", "detr3d"])
def test_trainings_with_cached_and_online_expert_end_with_the_same_bits(tmp_path: Path, project: Path, family):
    prefix = "" if family == "bevformer" else "detr3d_"
    expert = ExpertSettings(
        project / f"configs/world/{prefix}expert.py", project / f"checkpoints/world_{prefix}expert.pth"
    )
    student = StudentSettings(project / f"configs/world/{prefix}apprentice.py")
    pair = Family(family, expert, student, DistillSettings(inherit=()))
    found = compare(pair, FocalRule(), make_world(tmp_path, 2, 3), tmp_path, steps=4, frames=3)
    assert list(found) == ["online", *FINEST_FIRST]
    online, finest, coarsest = (found[name] for name in ("online", FINEST_FIRST[0], "uint8"))
    assert finest[1] and set(largest_difference(finest[0], online[0], 1).values()) == {0.0}
    assert len(online[0]["loss_fine"]) == 4 and online[0]["loss_fine"][0] > 0
    assert not coarsest[1] and 0 < largest_difference(coarsest[0], online[0], 1)["loss_pv"] < 0.05
