"""How a ratio is measured: the cases, the candidates, the gate before the clock, the record after it."""
