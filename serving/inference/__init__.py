"""Models on ONNX Runtime: sessions and providers, batching, which models are loaded."""
