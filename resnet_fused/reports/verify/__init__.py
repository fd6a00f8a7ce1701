"""Errors against float64, of every op and of a model, beside eager's."""
