"""What runs a model: one interface, by PyTorch or by ONNX graphs."""
