"""What the project is measured against: torch in its best settings, ONNX Runtime, OpenVINO."""
