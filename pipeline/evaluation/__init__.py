"""Detectors in prediction mode: detections, submissions and metrics."""
