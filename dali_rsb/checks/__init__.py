"""What the commands `doctor` and `parity` check."""
