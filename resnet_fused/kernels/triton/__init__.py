"""Triton kernels, a module an op, and how big their launches are (`schedule`)."""
