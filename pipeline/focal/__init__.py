"""Focal areas and positions from object queries: pure tensor geometry that knows no detector."""

from .areas import (
    bev_footprints,
    project_boxes,
    pv_rectangles_to_cells,
    sampling_neighbours,
    trust_map,
    union,
)
from .rule import FocalRule

__all__ = [
    "FocalRule",
    "bev_footprints",
    "project_boxes",
    "pv_rectangles_to_cells",
    "sampling_neighbours",
    "trust_map",
    "union",
]
