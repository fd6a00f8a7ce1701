"""Other people's models: what a forward computes, as a program, and a class that runs it."""
