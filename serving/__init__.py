"""How a model answers: HTTP, batch extraction, the demo. Torch-free: a model is its ONNX graphs."""
