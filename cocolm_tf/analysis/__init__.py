"""What a run has learned: its curves, its behavior on sentences, its report."""
