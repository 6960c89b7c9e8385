"""What one and ten student runs cost, computed by hand."""

import pytest

from benchmarks.cost import EMBEDDED, END, PUBLISHED, Plan, put_into, total_flops, total_hours, total_passes

PLAN = Plan(frames=100, steps=50, batch=2)
MEASURED = {
    "seconds": {"dump": 36.0, "plain": 1.0, "cached": 72.0, "queue": 144.0},
    "passes": {"plain": 0.0, "queue": 1.5},
}


@pytest.mark.parametrize(
    ("kind", "runs", "hours", "passes"),
    [
        ("cached", 1, 1 + 1, 100),  # 100 frames x 36 s, 50 steps x 72 s
        ("cached", 10, 1 + 10, 100),
        ("queue", 1, 2, 150),  # 50 steps x 2 frames x 1.5
        ("queue", 10, 20, 1500),
    ],
)
def test_a_dump_is_paid_once_and_an_online_expert_in_every_run(kind, runs, hours, passes):
    assert total_hours(MEASURED, PLAN, kind, runs) == pytest.approx(hours)
    assert total_passes(MEASURED, PLAN, kind, runs) == passes


def test_flops_are_two_per_multiply_add():
    expert, apprentice = {"whole": 1000.0, "history": 800.0}, {"whole": 10.0, "history": 8.0}
    student = 3 * 10 + 1 * 8  # forward and backward, and one frame of history
    cost = {
        kind: total_flops(MEASURED, PLAN, kind, 10, expert, apprentice, queue=2)
        for kind in ("plain", "cached", "queue")
    }
    assert cost["plain"] == 2 * 10 * 100 * student
    assert cost["cached"] == cost["plain"] + 2 * 100 * 1000
    assert cost["queue"] == cost["plain"] + 2 * 10 * 100 * (1000 + 0.5 * 800)


def test_a_documents_table_is_replaced(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{EMBEDDED}\nold\n{END}\nbetween\n{PUBLISHED}\nolder\n{END}\nafter\n")
    put_into(page, "new", EMBEDDED)
    put_into(page, "newer", PUBLISHED)
    assert page.read_text() == f"before\n{EMBEDDED}\nnew\n{END}\nbetween\n{PUBLISHED}\nnewer\n{END}\nafter\n"
