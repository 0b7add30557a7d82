"""ONNX Runtime: engines for the CPU."""
