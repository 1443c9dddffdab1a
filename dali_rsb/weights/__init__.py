"""Weights in and out: from any source into a model, and from a run into others' hands."""
