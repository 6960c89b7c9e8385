"""Whether all outputs that a report shows are there, and its metrics are of the detectors and frames that it is about."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from pipeline.data.index import FrameIndex
from pipeline.errors import FD3DError

ROLES = ("expert", "plain", "fd3d")


def check_outputs(families: Sequence[str], runs: Path, metrics: Path) -> None:
    """Refuse a report of families whose outputs are not all there.

    Args:
        runs, metrics: folders of the stages' outputs.

    Raises:
        FD3DError: naming all files that are missing.
    """
    needed = []
    for family in families:
        needed.append(runs / family / "store/manifest.json")
        for role in ROLES:
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
        for role in ROLES:
            file, detector = metrics_file(metrics, family, role), runs / family / role / "detector.pth"
            if why := _other(file, detector, index, split):
                places = f"--checkpoint {detector} --out {runs / 'evaluate' / family / role} --metrics {file}"
                own = runs == Path("runs") and metrics == Path("metrics")
                stale[file] = why, f"fd3d evaluate {f'--family {family} --role {role}' if own else places}"
    if not stale:
        return
    file, *others = stale
    why, command = stale[file]
    more = f"; {', '.join(map(str, others))} likewise, all by 'dvc repro'" if others else " or 'dvc repro'"
    raise FD3DError(f"{file} {why}; make it anew with '{command}'{more}")


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
