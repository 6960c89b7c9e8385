"""Focal areas and positions from object queries: pure tensor geometry that knows no detector."""

from .areas import (
    bev_footprints,
    project_boxes,
    pv_rectangles_to_cells,
    pv_spans,
    sampling_neighbours,
    spans_union,
    trust_map,
    union,
)
from .rule import FocalRule

__all__ = [
    "FocalRule",
    "bev_footprints",
    "project_boxes",
    "pv_rectangles_to_cells",
    "pv_spans",
    "sampling_neighbours",
    "spans_union",
    "trust_map",
    "union",
]
