"""Images that DALI cannot decode: found when the graph fails; what Pillow decodes is converted, the
rest replaced by their neighbour.

DALI drops a whole pipeline over one file. As the data path is a pure function, the batches under
way are simply built again without the file.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Literal

import numpy as np
from nvidia.dali import Pipeline

from dali_rsb.dataset import DatasetIndex
from dali_rsb.errors import UserError
from dali_rsb.loader.conversion import Conversions
from dali_rsb.loader.executor import is_failure_of_device
from pipelines.decoding import decode_check_pipeline

logger = logging.getLogger(__name__)

OnBadImage = Literal["substitute", "raise"]


class BadImages:
    """Keeps the replacements of undecodable images of one dataset.

    A bad image is one that neither DALI nor Pillow decodes; it is replaced by the next index that
    is good, on every process alike. `conversions` holds the copies of those that only Pillow
    decodes.

    Args:
        index: the dataset.
        policy: "substitute" replaces and warns, "raise" stops with the file's name.
        max_fraction: share of the dataset that may be replaced before that is an error; one image
            always may.
    """

    def __init__(
        self, index: DatasetIndex, policy: OnBadImage = "substitute", max_fraction: float = 0.001
    ) -> None:
        self.replacements: dict[int, int] = {}
        self.conversions = Conversions(index)
        self._index = index
        self._policy = policy
        self._max_count = max(1, int(max_fraction * len(index)))

    def find(self, indices: np.ndarray, error: RuntimeError, device_id: int | None = None) -> None:
        """Decode images one by one; convert or else replace those that fail.

        Args:
            indices: int64 [n], those of the batches under way when the graph failed.
            error: the failure, raised again if every image decodes.
            device_id: the GPU whose graph failed, or None. Its decoder is asked where the CPU's
                finds nothing wrong, as the two need not accept the same files.

        Raises:
            UserError: a bad image under the "raise" policy, or too many of them.
        """
        new = [int(i) for i in indices if int(i) not in self.replacements]
        # If all of those decode, a stand-in may have gone bad in its turn.
        stand_ins = set(self.replacements.values())
        bad = self._undecodable(new) or self._undecodable(stand_ins)
        if not bad and device_id is not None and not is_failure_of_device(error):
            bad = self._undecodable(new, device_id) or self._undecodable(stand_ins, device_id)
        if not bad:
            raise error
        for image in bad:
            if not self.conversions.convert_rejected(image):
                self._replace(image)

    def _replace(self, image: int) -> None:
        name = self._index.name(image)
        if self._policy == "raise":
            raise UserError(f"{name} cannot be decoded; {self._mend}")
        good = self._next_good(image)
        for replaced, by in self.replacements.items():
            if by == image:
                self.replacements[replaced] = good
        self.replacements[image] = good
        logger.warning("%s cannot be decoded; %s stands in", name, self._index.name(good))
        if len(self.replacements) > self._max_count:
            raise UserError(
                f"{len(self.replacements)} images of {self._index.origin} cannot be decoded, the "
                f"last one {name}; {self._mend}, or raise max_bad_fraction (in a "
                "configuration: data.max_bad_fraction)"
            )

    @property
    def _mend(self) -> str:
        if self._index.shards is not None:
            return "repair or remove it in the images that were packed, and pack anew"
        return "repair or remove the file"

    def _next_good(self, image: int) -> int:
        for step in range(1, len(self._index)):
            candidate = (image + step) % len(self._index)
            if candidate not in self.replacements and self._is_good(candidate):
                return candidate
        raise UserError(f"no image of {self._index.origin} can be decoded")

    def _is_good(self, image: int) -> bool:
        return not self._undecodable([image]) or self.conversions.convert_rejected(image)

    def _undecodable(self, images: Iterable[int], device_id: int | None = None) -> list[int]:
        """Those of some images that the decoder of the CPU, or of a GPU, rejects.

        Raises:
            RuntimeError: the GPU failed, which says nothing of an image.
        """
        bad = []
        pipeline: Pipeline | None = None
        for image in images:
            pipeline = pipeline or decode_check_pipeline(self._index.image_source, device_id)
            inputs = self.conversions.image_inputs(image)
            try:
                pipeline.run(**inputs)
            except RuntimeError as error:
                if device_id is not None and is_failure_of_device(error):
                    raise
                bad.append(image)
                pipeline = None  # DALI drops a pipeline that failed
        return bad
