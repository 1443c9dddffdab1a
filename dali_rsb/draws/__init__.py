"""What chance decides about a sample, as a pure function of (seed, epoch, position)."""
