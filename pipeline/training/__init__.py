"""Training of experts and students."""
