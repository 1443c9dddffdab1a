"""Which images there are: the index of a folder, of shards or of a list; and packing shards."""

from dali_rsb.dataset.building import index_samples
from dali_rsb.dataset.image_header import ImageFormat
from dali_rsb.dataset.index import DatasetIndex
from dali_rsb.dataset.opening import open_index
from dali_rsb.dataset.reading import Reading

__all__ = ["DatasetIndex", "ImageFormat", "Reading", "index_samples", "open_index"]
