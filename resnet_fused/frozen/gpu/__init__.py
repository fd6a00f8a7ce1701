"""The engine for GPUs: fixed shapes, one memory plan, one CUDA graph."""
