"""Which images there are: the index of a folder, of shards or of a list; and packing shards."""

from dali_rsb.dataset.building import index_samples
from dali_rsb.dataset.image_header import ImageFormat
from dali_rsb.dataset.index import DatasetIndex, check_same_classes
from dali_rsb.dataset.opening import open_index

__all__ = ["DatasetIndex", "ImageFormat", "check_same_classes", "index_samples", "open_index"]
