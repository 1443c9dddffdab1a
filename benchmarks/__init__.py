"""Benchmarks: what this project's speed is, beside what a user has now, on the user's machine."""
