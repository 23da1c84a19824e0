"""Speed side by side: against other projects, against size, and of the data."""
