"""Benchmarks against real peers: docs/benchmarks.md says how they measure and how to read them."""
