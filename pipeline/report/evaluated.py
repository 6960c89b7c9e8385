"""Whether all outputs that a report shows are there, and of the detectors and frames that the report is about."""

import csv
import hashlib
import json
from collections.abc import Collection, Sequence
from pathlib import Path

from pipeline.data.index import FrameIndex
from pipeline.data.origin import origin_of
from pipeline.errors import FD3DError

LOSSES = ("loss_pv", "loss_bev", "loss_fine", "loss_relation", "loss_mixed")
"""Losses of FD3D that reach the student."""
ROLES = ("expert", "plain", "fd3d")


def shown_roles(family: str, runs: Path, metrics: Path) -> tuple[str, ...]:
    """Roles of a family that a report shows: those with a checkpoint or metrics, and all where there is no student.

    So a student that distils nothing is reported without the detectors that nobody made.
    """
    there = [
        role
        for role in ROLES
        if (runs / family / role / "detector.pth").is_file() or metrics_file(metrics, family, role).is_file()
    ]
    return tuple(there) if set(there) - {"expert"} else ROLES


def without_losses(curve: Path) -> bool:
    """Whether FD3D's losses were 0 in every step of a training, by its ``losses.csv``: the student is a plain one then.

    A curve without rows, or whose rows have no such loss, tells nothing.
    """
    if not curve.is_file():
        return False
    with open(curve, newline="") as file:
        rows = list(csv.DictReader(file))
    terms = [row[name] for row in rows for name in LOSSES if row.get(name)]
    return bool(terms) and all(float(term) == 0 for term in terms)


def check_outputs(families: Sequence[str], runs: Path, metrics: Path) -> None:
    """Refuse a report of families whose outputs are not all there.

    Args:
        runs, metrics: folders of the stages' outputs.

    Raises:
        FD3DError: naming all files that are missing.
    """
    needed = []
    for family in families:
        roles = shown_roles(family, runs, metrics)
        needed += [runs / family / "store/manifest.json"] if "fd3d" in roles else []
        for role in roles:
            own, evaluated = runs / family / role, runs / "evaluate" / family / role
            needed += [own / "detector.pth", own / "train.json", evaluated / "submission.json", evaluated / "pr.csv"]
            needed += [metrics_file(metrics, family, role)] + ([own / "losses.csv"] if role != "expert" else [])
    if missing := [str(path) for path in needed if not path.is_file()]:
        verb = "does" if len(missing) == 1 else "do"
        raise FD3DError(f"{', '.join(missing)} {verb} not exist; run 'dvc repro'")


def metrics_file(metrics: Path, family: str, role: str) -> Path:
    """File of a detector's metrics in the folder of all metrics."""
    return metrics / "detectors" / family / f"{role}.json"


def check_evaluated(families: Sequence[str], index: FrameIndex, split: str, runs: Path, metrics: Path) -> None:
    """Refuse metrics of another checkpoint, index or split than the report's.

    Args:
        index, split: frames that the detectors are to be evaluated on.
        runs, metrics: folders of the stages' outputs.

    Raises:
        FD3DError: naming the first such file with both values, the others, and how they are made anew.
    """
    stale: dict[Path, tuple[str, str]] = {}
    for family in families:
        for role in shown_roles(family, runs, metrics):
            file, detector = metrics_file(metrics, family, role), runs / family / role / "detector.pth"
            if why := _other(file, detector, index, split):
                stale[file] = why, _evaluation(family, role, runs, metrics)
    if not stale:
        return
    file, *others = stale
    why, command = stale[file]
    more = f"; {', '.join(map(str, others))} likewise, all by 'dvc repro'" if others else " or 'dvc repro'"
    raise FD3DError(f"{file} {why}; make it anew with '{command}'{more}")


def check_submission(
    tokens: Collection[str], family: str, role: str, index: FrameIndex, split: str, runs: Path, metrics: Path
) -> None:
    """Refuse a submission that lacks frames of the report's split, as one of another split does.

    Args:
        tokens: sample tokens of the detector's submission.

    Raises:
        FD3DError: naming the submission, whose frames it has, and how it is made anew.
    """
    if missing := [token for token in (index[row].token for row in index.select(split)) if token not in tokens]:
        raise FD3DError(
            f"{runs / 'evaluate' / family / role / 'submission.json'} lacks {len(missing)} of the frames of data.val, {split}: "
            f"{origin_of(index, tokens)[0]}; make it anew with '{_evaluation(family, role, runs, metrics)}'"
        )


def _evaluation(family: str, role: str, runs: Path, metrics: Path) -> str:
    """Command that evaluates a detector to where the report looks."""
    if runs == Path("runs") and metrics == Path("metrics"):
        return f"fd3d evaluate --family {family} --role {role}"
    out, file = runs / "evaluate" / family / role, metrics_file(metrics, family, role)
    return f"fd3d evaluate --checkpoint {runs / family / role / 'detector.pth'} --out {out} --metrics {file}"


def _other(file: Path, detector: Path, index: FrameIndex, split: str) -> str | None:
    """How metrics are none of the report's; None for its own."""
    found = json.loads(file.read_text()).get("evaluated")
    if not found:
        return "does not say which detector and frames it is of"
    with open(detector, "rb") as opened:
        wanted = {"checkpoint_sha256": hashlib.file_digest(opened, "sha256").hexdigest()}
    wanted |= {"index_sha256": index.sha256, "split": split}
    names = {"checkpoint_sha256": f"checkpoint {detector}", "index_sha256": f"index {index.path}", "split": "data.val"}
    for key, here in wanted.items():
        if (there := found[0].get(key)) != here:
            shown = [str(value) if key == "split" else str(value)[:12] for value in (there, here)]
            return f"is of another {key.replace('_sha256', '')}, {shown[0]}, than {names[key]}, {shown[1]}"
    return None
