"""Labels as texts, in lists and shards: class numbers or class names."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dali_rsb.dataset.ordering import ClassOrder, ordered_names
from dali_rsb.errors import UserError

logger = logging.getLogger(__name__)

_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)", re.ASCII)  # 007 is a name
_PADDED = re.compile(r"-?[0-9]+", re.ASCII)
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?", re.ASCII)
# Up to 999,999: a larger label is a mistake, and the names of so many classes fill the memory.
_CLASS_NUMBER = re.compile(r"0*(0|[1-9][0-9]{0,5})", re.ASCII)
_MAX_SHOWN = 60  # characters of a wrong line or label in a message


def labels_of_texts(
    texts: Sequence[str], where: str, order: ClassOrder, padded: bool = False
) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    """Class names, and the label of each text: class numbers if all are integers, else names.

    Args:
        where: what the texts were read from, for messages.
        order: of names.
        padded: 0007 is the number 7, as in WebDataset's .cls files, and not a name.

    Raises:
        UserError: numbers below 0, too large for classes, or with a fraction.
    """
    distinct = set(texts)
    if not all(map((_PADDED if padded else _INTEGER).fullmatch, distinct)):
        _refuse_fractions(distinct, where)
        classes = ordered_names(distinct, order)
        values = {name: label for label, name in enumerate(classes)}
    else:
        wrong = sorted(text for text in distinct if not _CLASS_NUMBER.fullmatch(text))
        if wrong:
            label = short(wrong[0])
            raise UserError(f"label {label} in {where} is no class number: count classes from 0")
        values = {text: int(text) for text in distinct}
        if min(values.values()) > 0:
            smallest = min(values.values())
            logger.warning(
                "the smallest label in %s is %d: classes are counted from 0", where, smallest
            )
        classes = [str(label) for label in range(max(values.values()) + 1)]
    return tuple(classes), np.array([values[text] for text in texts], np.int64)


def is_class_number(text: str) -> bool:
    """Whether a label in a list is a class number, and not a name."""
    return _INTEGER.fullmatch(text) is not None


def _refuse_fractions(distinct: set[str], where: str) -> None:
    """Numbers such as 3.0 would be names, in another order than that of the numbers."""
    fractions = sorted(text for text in distinct if not _PADDED.fullmatch(text))
    if all(map(_NUMBER.fullmatch, distinct)) and fractions:
        raise UserError(
            f"label {short(fractions[0])} in {where} is no class number: write whole numbers, such "
            "as 3, or names"
        )


def short(text: str) -> str:
    """A wrong line or label for a message."""
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."
