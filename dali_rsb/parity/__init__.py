"""Holding the pixels of the DALI graphs against Pillow's and timm's; see `__main__`."""
