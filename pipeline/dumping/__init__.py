"""Stage 1: the expert runs once over every frame, and what distillation reads goes into the store."""
