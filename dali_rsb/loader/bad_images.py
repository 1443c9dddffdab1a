"""Images that cannot be used: what DALI cannot decode but Pillow can is converted, the rest is
replaced by its neighbour.

Before use, an image is refused by its header alone: one that cannot be read any more, or states too
many pixels. A JPEG is also read to its end on its first use (see `dataset.coded_data`). The others
are found when the graph fails. DALI drops a whole pipeline over one file;
as the data path is a pure function, the batches in flight are simply built again without the file.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
from nvidia.dali import Pipeline

from dali_rsb.constants import MAX_PIXELS
from dali_rsb.dataset import DatasetIndex
from dali_rsb.dataset.changes import update, update_changed
from dali_rsb.dataset.coded_data import is_cut_by_marker
from dali_rsb.dataset.image_header import ImageFormat
from dali_rsb.errors import UserError
from dali_rsb.loader.conversion import Conversions
from dali_rsb.loader.executor import is_failure_of_device
from dali_rsb.system.names import printable
from pipelines.decoding import decode_check_pipeline

logger = logging.getLogger(__name__)

OnBadImage = Literal["substitute", "raise"]

_NUM_READERS = 8  # threads; files are read and NumPy looks at them without the interpreter lock


class BadImages:
    """Keeps the replacements of undecodable images of one dataset.

    A bad image is one that neither DALI nor Pillow decodes, or that is too large; it is replaced by
    the next index that is good, on every process alike. `conversions` holds the copies of those
    that only Pillow decodes.

    Args:
        index: the dataset.
        policy: "substitute" replaces and warns, "raise" stops with the file's name.
        max_fraction: share of the dataset that may be replaced before that is an error; one image
            always may.
        max_pixels: of an image; what has more is not decoded, as it would take its time and memory
            from all others.
    """

    def __init__(
        self,
        index: DatasetIndex,
        policy: OnBadImage = "substitute",
        max_fraction: float = 0.001,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.replacements: dict[int, int] = {}
        self.conversions = Conversions(index, max_pixels)
        self._index = index
        self._policy = policy
        self._max_count = max(1, int(max_fraction * len(index)))
        self._max_pixels = max_pixels
        self._tells_of_changes = True
        # To its end, by this process or by the one that stored it.
        self._is_read = index.store.decoded_before(np.arange(len(index)))

    def admit(self, indices: np.ndarray) -> bool:
        """Look at images that are about to be used, without decoding them.

        The index learns the headers of files that have changed; what DALI would decode to other
        pixels is converted, and what cannot be used is replaced.

        Args:
            indices: int64 [n].

        Returns:
            Whether anything is other than before: a header, a copy or a replacement.

        Raises:
            UserError: a bad image under the "raise" policy, or too many of them.
        """
        images = np.unique(indices)
        changed = update_changed(self._index, images)
        for image in changed:
            self._note_change(image)
        refused = self._refused(images)
        for image in refused:
            self._replace(image)
        cut = self._cut_by_marker(images)
        for image in cut:
            if not self._is_usable_cut(image):
                self._replace(image)
        return bool(changed or refused or cut)

    def _cut_by_marker(self, images: np.ndarray) -> list[int]:
        """Those JPEGs of some images, int64 [n], that a marker cuts; each is looked at once."""
        is_new = ~self._is_read[images] & (self._index.formats[images] == ImageFormat.JPEG)
        new = [i for i in images[is_new].tolist() if i not in self.replacements]
        if not new:
            return []
        with ThreadPoolExecutor(min(_NUM_READERS, len(new))) as pool:
            is_cut = list(pool.map(self._is_cut_by_marker, new))
        self._is_read[new] = True
        return [image for image, cut in zip(new, is_cut, strict=True) if cut]

    def _is_cut_by_marker(self, image: int) -> bool:
        try:
            with self._index.open(image) as file:
                return is_cut_by_marker(file.read())
        except OSError:  # gone since its header was read: DALI will say so
            return False

    def _is_usable_cut(self, image: int) -> bool:
        """Convert a JPEG that a marker cuts, by the size that the file states now."""
        if update(self._index, image):
            self._note_change(image)
            self._is_read[image] = True
        if self._refused(np.array([image])):
            return False
        return self.conversions.convert_rejected(image, "a marker cuts its coded data short")

    def _refused(self, images: np.ndarray) -> list[int]:
        """Those of some images, int64 [n], that their headers rule out."""
        index = self._index
        pixels = index.widths[images].astype(np.int64) * index.heights[images]
        is_refused = (index.formats[images] == ImageFormat.UNREADABLE) | (pixels > self._max_pixels)
        return [i for i in images[is_refused].tolist() if i not in self.replacements]

    def _note_change(self, image: int) -> None:
        self.conversions.forget(image)
        self._is_read[image] = False
        if self._tells_of_changes:
            self._tells_of_changes = False
            logger.info(
                "files have changed since %s was indexed: the headers of those are read again",
                self._index.origin,
            )

    def find(self, indices: np.ndarray, error: RuntimeError, device_id: int | None = None) -> None:
        """Decode images one by one; convert or else replace those that fail.

        Args:
            indices: int64 [n], the images of the batches in flight when the pipeline failed.
            error: the failure, raised again if every image decodes.
            device_id: the GPU whose pipeline failed, or None. Its decoder is asked where the CPU's
                finds nothing wrong, as the two need not accept the same files.

        Raises:
            UserError: a bad image under the "raise" policy, or too many of them.
        """
        if self.admit(indices):
            return  # with what is known now, the graph may not fail
        new = [int(i) for i in indices if int(i) not in self.replacements]
        # If all of those decode, an image that replaces another may have gone bad.
        stand_ins = set(self.replacements.values())
        bad = self._undecodable(new) or self._undecodable(stand_ins)
        if not bad and device_id is not None and not is_failure_of_device(error):
            bad = self._undecodable(new, device_id) or self._undecodable(stand_ins, device_id)
        if not bad:
            raise error
        for image in bad:
            # Whatever made the index hold another header than the file, it has the file's now.
            if update(self._index, image):
                self._note_change(image)
            elif not self.conversions.convert_rejected(image):
                self._replace(image)

    def stand_ins(self, images: Iterable[int]) -> list[int]:
        """The images that are used where some are asked for: themselves, or the next good ones.

        They are decoded to find out.

        Raises:
            UserError: a bad image under the "raise" policy, or too many of them.
        """
        asked = list(images)
        if asked:
            self.admit(np.array(asked))
        for image in self._undecodable(sorted(set(asked) - self.replacements.keys())):
            if not self.conversions.convert_rejected(image):
                self._replace(image)
        return [self.replacements.get(image, image) for image in asked]

    def leave_out(self, image: int) -> int:
        """Replace an image from now on, whether it is good or not; returns what stands in.

        Raises:
            UserError: no good image is left.
        """
        good = self._next_good(image)
        for replaced, by in self.replacements.items():
            if by == image:
                self.replacements[replaced] = good
        self.replacements[image] = good
        return good

    def _replace(self, image: int) -> None:
        complaint = self._complaint(image)
        # The log takes a name of any length, the one line of an error does not.
        name, short = printable(self._index.name(image)), printable(self._index.name(image), 130)
        if self._policy == "raise":
            raise UserError(f"{short} {complaint}; {self._fix(image)}")
        good = self.leave_out(image)
        logger.warning("%s %s; %s stands in", name, complaint, printable(self._index.name(good)))
        if len(self.replacements) > self._max_count:
            raise UserError(
                f"{len(self.replacements)} images are bad, the last one {short} {complaint}; "
                f"{self._fix(image)}, or raise max_bad_fraction (data.max_bad_fraction)"
            )

    def _complaint(self, image: int) -> str:
        if not self._is_too_large(image):
            return "cannot be decoded"
        size = f"{self._index.widths[image]} x {self._index.heights[image]}"
        return f"has {size} pixels, more than max_pixels={self._max_pixels} (data.max_pixels)"

    def _is_too_large(self, image: int) -> bool:
        width, height = int(self._index.widths[image]), int(self._index.heights[image])
        return width * height > self._max_pixels

    def _fix(self, image: int) -> str:
        if self._is_too_large(image):
            return "shrink or remove it, or raise max_pixels (in a configuration: data.max_pixels)"
        return self._index.store.repair

    def _next_good(self, image: int) -> int:
        for step in range(1, len(self._index)):
            candidate = (image + step) % len(self._index)
            if candidate not in self.replacements and self._is_good(candidate):
                return candidate
        raise UserError(
            f"no image of {printable(self._index.origin, 200)} can be decoded; give another folder "
            "or list"
        )

    def _is_good(self, image: int) -> bool:
        alone = np.array([image])
        for changed in update_changed(self._index, alone):
            self._note_change(changed)
        if self._refused(alone):
            return False
        if self._cut_by_marker(alone):
            return self._is_usable_cut(image)
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
