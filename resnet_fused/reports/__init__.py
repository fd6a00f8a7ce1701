"""What ran and why, what it costs, whether it is right: everything that prints a table."""
