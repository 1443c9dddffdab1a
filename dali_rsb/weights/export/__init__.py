"""Weights out: one module for each format, the comparison that each export must pass, the card."""
