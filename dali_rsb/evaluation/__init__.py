"""Accuracy of models over a validation set."""
