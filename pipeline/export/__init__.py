"""Detectors as ONNX files: the graph in standard operators, the file, and the file's use with ONNX Runtime."""
