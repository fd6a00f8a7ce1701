"""The networks; they read like the paper."""
