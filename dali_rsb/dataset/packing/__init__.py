"""Pack a dataset into tar shards, shuffled, with an index; check what was packed."""

from dali_rsb.dataset.packing.checking import verify
from dali_rsb.dataset.packing.options import DEFAULT_QUALITY, PackOptions, PackReport
from dali_rsb.dataset.packing.plan import PackPlan, check_room, plan
from dali_rsb.dataset.packing.writing import pack

__all__ = [
    "DEFAULT_QUALITY",
    "PackOptions",
    "PackPlan",
    "PackReport",
    "check_room",
    "pack",
    "plan",
    "verify",
]
