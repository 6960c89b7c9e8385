"""Where frames are from: the split of an index that frames given by their tokens make up."""

from collections.abc import Collection

from pipeline.data.index import FrameIndex
from pipeline.errors import counted


def origin_of(index: FrameIndex, tokens: Collection[str]) -> tuple[str, str]:
    """Words for a message about a file whose frames are not those of the wanted split: whose they are, and what to do.

    Args:
        tokens: sample tokens of all frames of the file, each once.
    """
    rows = {index.row(token) for token in tokens if index.has(token)}
    if strange := len(tokens) - len(rows):
        which = "none of its samples can" if not rows else f"{counted(strange, 'sample')} of its {len(tokens)} cannot"
        return f"{which} be found in index {index.path}", "give the index of its data set by --index, or detect again"
    for split in (*index.splits, "all"):
        if rows == set(index.select(split)):
            return f"it is of split '{split}'", f"give --split {split}, or detect again"
    return "it is of no whole split", "detect on all of the split again"
