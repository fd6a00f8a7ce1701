"""What a GPU network costs the host, and what it launches, on a GPU that is not there (tests/emulator/pretended.py)."""
