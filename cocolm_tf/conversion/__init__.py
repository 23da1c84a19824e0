"""Released checkpoints in and out."""
