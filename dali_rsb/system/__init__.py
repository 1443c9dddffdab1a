"""The machine underneath: CPUs and files. Knows nothing of images or training."""
