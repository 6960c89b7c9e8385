"""What people look at after a run: table, curves, pictures."""
