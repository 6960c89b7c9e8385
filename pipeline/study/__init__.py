"""Sweeps: the student trainings of a grid file, their table of results, and evidence from the table."""
