"""Pixels of the DALI pipelines compared with Pillow's and timm's."""

from dali_rsb.system.packages import require_dali

require_dali()
