"""Rows of a store beside the number of the algorithm that makes them: a change of the one asks for a change of the other."""

import numpy as np
import pytest

from pipeline.expert.rows import ALGORITHM
from store_schema import StoreReader

ROWS = {
    1: {"bev": 6952, "pv/0": 9581, "pv/1": 2712, "pv/2": 829, "score": 0.34977, "x": 8.42679},
    # a stride per axis, alike on this world's levels, and geometry in float32 under autocast
    2: {"bev": 6952, "pv/0": 9581, "pv/1": 2712, "pv/2": 829, "score": 0.34977, "x": 8.42679},
    # queries of score 0 span no area
    3: {"bev": 6952, "pv/0": 9581, "pv/1": 2712, "pv/2": 829, "score": 0.34977, "x": 8.42679},
}
"""By algorithm: cells stored of each map, mean score and mean absolute x of boxes, over the tiny world's frames."""


def test_rows_are_those_of_this_number_of_the_algorithm(store):
    """Fails when code makes other rows: raise ALGORITHM, so that old stores are not taken for new, and add what is found."""
    reader = StoreReader(store)
    frames = [reader.read(token) for token in reader.tokens]
    found: dict[str, float] = {
        name: sum(len(frame[f"{name}/index"]) for frame in frames) for name in ("bev", "pv/0", "pv/1", "pv/2")
    }
    found["score"] = float(np.mean([frame["query/score"].mean() for frame in frames]))
    found["x"] = float(np.mean([np.abs(frame["query/boxes"][:, 0]).mean() for frame in frames]))
    print(found)
    # other processors' last bits may move single cells
    assert found == pytest.approx(ROWS[ALGORITHM], rel=2e-3)
