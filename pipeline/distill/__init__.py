"""Stage 2: distillers around any student, one per method, their losses, and modules that exist in training only."""
