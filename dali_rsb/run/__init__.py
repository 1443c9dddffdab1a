"""What surrounds a run: its processes, signals, checkpoints, log and meters."""
