"""The tolerance rule, the clock, what a machine is, and what was measured on it."""
