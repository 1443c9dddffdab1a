"""Checks of a dataset: everything is decoded once, and what is wrong is listed."""

from dali_rsb.system.packages import require_dali

require_dali()
