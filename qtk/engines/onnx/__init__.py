"""The decoder as ONNX: the graph, its ports and the file that holds it."""
