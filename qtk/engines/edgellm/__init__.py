"""TensorRT Edge-LLM: its exporter, its build tool and its own generation loop."""
