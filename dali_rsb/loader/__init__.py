"""Batches of decoded images out of DALI, some of them in flight ahead of the one in use."""

from dali_rsb.system.packages import require_dali

require_dali()
