"""Speed and memory of the detectors, against the official code's way of computing them."""
