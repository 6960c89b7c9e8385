"""Stored scores of the expert's queries, looked at before a training: queries below a method's least score teach nothing."""

import warnings
from collections.abc import Sequence

from pipeline.errors import FD3DError, counted
from store_schema import StoreReader

from .settings import MethodSettings

SAMPLE = 100
"""Evenly spread frames that are read first: each is a read of its own, slow where a store lies on a network."""
FEW = 0.1
"""Share of the frames with a query that counts, below which there is a warning."""


def check_scores(reader: StoreReader, settings: MethodSettings, tokens: Sequence[str]) -> None:
    """Refuse a store of whose frames no query reaches the method's least score, and warn where hardly any frame has one.

    All losses would be 0 in every step, and the student a plain one under another name. An online expert is taken to score as
    the store's does. All frames are read only where none of the evenly spread ones has such a query.

    Args:
        tokens: frames that are trained on; without any of them in the store, as an online expert allows, all of the store count.

    Raises:
        FD3DError: naming store, settings and the highest score.
        StoreError: scores of the store are damaged.
    """
    bars = settings.least_scores
    if not bars:
        return
    name, least = max(bars.items(), key=lambda bar: bar[1])
    there = set(reader.tokens)
    frames = [token for token in tokens if token in there] or reader.tokens
    count = min(SAMPLE, len(frames))
    spread = [frames[i * len(frames) // count] for i in range(count)]
    best = _highest(reader, spread)
    if not _reaches(max(best), least) and count < len(frames):
        best = _highest(reader, frames)
    if (highest := max(best)) <= 0:
        raise FD3DError(
            f"no query of {counted(len(best), 'frame')} of store {reader.storage} has a score above 0, so {settings.section} has nothing to "
            "distil: the expert detects nothing there; look at the expert (is it trained? does its detector drop low scores?)"
        )
    if highest < least:
        above = [bar for bar in bars if bars[bar] > highest]
        raise FD3DError(
            f"no query of {counted(len(best), 'frame')} of store {reader.storage} has a score that reaches {name}, {least:g}: the highest "
            f"is {highest:.3g}, so {settings.section} has nothing to distil; look at the expert (is it trained?), or lower "
            f"{' and '.join(above)}"
        )
    reaching = sum(_reaches(score, least) for score in best)
    if reaching < FEW * len(best):
        warnings.warn(
            f"only {reaching} of {counted(len(best), 'frame')} of store {reader.storage} have a query whose score reaches {name}, {least:g} (the "
            f"highest is {highest:.3g}), so {settings.section} distils hardly anything; look at the expert, or lower {name}",
            stacklevel=3,
        )


def _reaches(score: float, least: float) -> bool:
    return score >= least and score > 0


def _highest(reader: StoreReader, tokens: Sequence[str]) -> list[float]:
    """Highest score of each frame, -1 where it has none."""
    return [float(reader.read_array(token, "query/score").max(initial=-1.0)) for token in tokens]
