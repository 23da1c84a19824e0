"""What the benchmark programs measure, other projects beside this one, and how they take turns."""
