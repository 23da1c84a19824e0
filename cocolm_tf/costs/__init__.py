"""What a run costs: the program of its step, and what a device makes of it."""
