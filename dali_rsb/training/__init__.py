"""A training run: its parts put together, the update, the loop over epochs."""
