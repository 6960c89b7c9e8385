"""Many student trainings from one grid file into one table of results, and what the table says."""
