"""The embedded world: a small synthetic data set in nuScenes' format that anyone can regenerate from a seed."""
