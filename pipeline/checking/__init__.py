"""Checks of a whole profile before any stage works: what later stages would refuse, after hours or with outputs removed."""
