"""Tiles of rows of an image, for 3x3 convolutions of 64 channels."""
