"""The engine in 8-bit floats (e4m3), and its calibration."""
