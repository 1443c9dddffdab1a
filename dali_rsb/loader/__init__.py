"""Batches of decoded images out of DALI, some of them in flight ahead of the one in use."""
