"""Benchmarks against real peers: docs/results/how-measured.md says how they measure and how to read them."""
