"""Messages of the CAN bus expansion that cannot be, and those that are read."""

import json

import numpy as np
import pytest

from pipeline.data.can_bus import EgoStates
from pipeline.errors import FD3DError

TIMES = np.array([1_000_000, 2_000_000])
POSES = np.tile(np.eye(4), (2, 1, 1))


def message(utime=1_500_000, accel=(1.0, 2.0, 3.0), **more):
    return {"utime": utime, "accel": accel, "rotation_rate": (4.0, 5.0, 6.0), "vel": (7.0, 8.0, 9.0)} | more


def states(tmp_path, messages):
    (tmp_path / "can_bus").mkdir(exist_ok=True)
    (tmp_path / "can_bus/scene-1_pose.json").write_text(json.dumps(messages))
    return EgoStates(tmp_path).of("scene-1", TIMES, POSES, np.ones(2))[:, 7:16]


@pytest.mark.parametrize(
    "messages",
    [
        [message(accel=(1.0,))],
        [message(accel=(1.0, 2.0), vel=(1.0, 2.0, 3.0, 4.0))],  # nine numbers in all
        [message(accel=("x", 2.0, 3.0))],
        [message(accel=3.0)],
        [message(utime=1e30)],
        [message(utime="soon")],
        [{"utime": 1}],
        [7],
    ],
)
def test_messages_of_another_form_are_refused(tmp_path, messages):
    with pytest.raises(FD3DError, match=r"CAN bus messages .*scene-1_pose.json cannot be read .*; copy the file again"):
        states(tmp_path, messages)


def test_values_that_are_not_finite_are_refused_where_a_frame_reads_them(tmp_path):
    broken = message(accel=(float("nan"), 2.0, 3.0))
    with pytest.raises(FD3DError, match=r"not finite at utime 1500000; remove the file to derive the ego motion"):
        states(tmp_path, [broken, message(2_500_000)])
    unread = message(500_000, accel=(float("nan"), 2.0, 3.0))
    assert np.isfinite(states(tmp_path, [unread, message(), message(2_500_000)])).all()


@pytest.mark.parametrize("utime", [1_500_000 + 3_600_000_000, 1_500_000_000])
def test_messages_of_another_clock_or_unit_are_refused(tmp_path, utime):
    with pytest.raises(FD3DError, match=r"are .* s from the frame at 1000000 \(2 of 2 frames\); give utime in micro"):
        states(tmp_path, [message(utime)])


def test_a_frame_reads_the_first_message_after_it_whatever_their_order(tmp_path):
    later, first = message(2_500_000, accel=(9.0, 9.0, 9.0)), message()
    assert states(tmp_path, [later, first])[:, 0].tolist() == [1.0, 9.0]
    assert states(tmp_path, [first, later])[:, 0].tolist() == [1.0, 9.0]
