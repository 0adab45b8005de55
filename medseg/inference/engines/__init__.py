"""Engines that run a network instead of PyTorch: ONNX Runtime, and OpenVINO in float32 or with 8-bit integers."""
