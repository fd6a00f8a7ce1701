"""Convolutions for compute capability 9.0, a folder a way to tile them."""
