"""TensorRT-LLM: its checkpoint, its build tool and its own generation loop."""
