"""`make gpu`: every check and measurement that needs a GPU, as one command."""
