"""Pixels of the DALI pipelines compared with Pillow's and timm's."""
