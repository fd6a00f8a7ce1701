"""Tiles of one output pixel of many images."""
