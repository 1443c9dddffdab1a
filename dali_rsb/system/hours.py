"""How long images take at a rate, and at which rate cores serve them."""

from __future__ import annotations


def hours(num_images: float, img_per_s: float) -> float:
    """Hours for so many images."""
    return num_images / img_per_s / 3600


def img_per_s_of_cores(cpu_ms_per_img: float, cores: int) -> float:
    """Images/s of cores that do nothing else, where an image takes so much time of one of them."""
    return 1000 * cores / cpu_ms_per_img
