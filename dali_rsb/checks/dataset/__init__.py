"""Checks of a dataset: everything is decoded once, and what is wrong is listed."""
