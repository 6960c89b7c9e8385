"""Many student trainings from one grid file into one table of results."""

from .grid import Expert, Grid, Training, chosen
from .runner import Outcome, Sweep
from .table import COLUMNS, put_lines, read_table

__all__ = ["COLUMNS", "Expert", "Grid", "Outcome", "Sweep", "Training", "chosen", "put_lines", "read_table"]
