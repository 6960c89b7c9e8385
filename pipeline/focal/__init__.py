"""Focal areas and positions from object queries: pure tensor geometry that knows no detector."""
