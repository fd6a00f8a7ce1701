"""Convolutions for compute capability 9.0. Each folder has one way to divide a convolution into tiles."""
