"""TensorRT-RTX and TensorRT: engines compiled for NVIDIA GPUs."""
