"""Datasets of other libraries, read whole: the files, labels and class names that they would give.

A dataset object decides its samples by more than a list of files: `target_transform`, `loader`,
`Subset.indices`, the parts of a `ConcatDataset`. Here all of that is taken over, or the object is
refused by name. No library is imported for it: classes are known by the module they come from.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from dali_rsb.dataset.reading import Reading
from dali_rsb.errors import UserError

_FOLDER = ("torchvision.datasets.folder", "DatasetFolder")
_SUBSET = ("torch.utils.data.dataset", "Subset")
_CONCAT = ("torch.utils.data.dataset", "ConcatDataset")
_TIMM = ("timm.data.dataset", "ImageDataset")
_TIMM_READER = ("timm.data.readers.reader_image_folder", "ReaderImageFolder")
# torchvision's loaders that decode a file to RGB, as DALI does in their place.
_PLAIN_LOADERS = (
    "torchvision.datasets.folder.default_loader",
    "torchvision.datasets.folder.pil_loader",
)
_IMAGE_FOLDER = Reading()
_TIMMS = Reading(class_order="natural", class_level="leaf")
_MAX_CLASSES = 1_000_000  # a larger label is a mistake, and names up to it would fill the memory

_ACCEPTED = (
    "give a folder, torchvision's ImageFolder or DatasetFolder, a Subset or ConcatDataset of them, "
    "or a list of (path, label) pairs"
)


@dataclass(frozen=True)
class Listing:
    """The samples of a dataset, in its order.

    Attributes:
        paths: of the files, absolute or relative to the working directory.
        labels: int64 [N], as the dataset gives them.
        classes: class names; a label is a position in it.
        root: folder that class folders lie in, whose stored index saves reading headers; or None.
        reading: how the class folders were read.
    """

    paths: list[str]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    root: str | None = None
    reading: Reading = _IMAGE_FOLDER

    def select(self, rows: npt.NDArray[np.int64]) -> Listing:
        """Some of the samples, in an order of their own."""
        paths = [self.paths[row] for row in rows.tolist()]
        return replace(self, paths=paths, labels=self.labels[rows])


def read_dataset(dataset: Any) -> Listing:
    """The samples of a dataset object or of a list of pairs.

    Raises:
        UserError: something other than files, labels and class names decides a sample, or a label
            is no class number; the object is named.
    """
    for (module, name), read in _READERS:
        if _is_a(dataset, module, name):
            return read(dataset)
    if isinstance(dataset, Sequence) and not isinstance(dataset, (str, bytes)):
        return _read_pairs(dataset)
    raise UserError(f"DaliLoader cannot see the files of {_named(dataset)}; {_ACCEPTED}")


def _read_pairs(pairs: Sequence[Any]) -> Listing:
    if not len(pairs):
        raise UserError("the list of samples is empty: give (path, label) pairs")
    for place, pair in enumerate(pairs):
        is_pair = isinstance(pair, (tuple, list)) and len(pair) == 2
        if not is_pair or not isinstance(pair[0], (str, os.PathLike)):
            raise UserError(
                f"sample {place} of {_named(pairs)} is no (path, label) pair; {_ACCEPTED}"
            )
    labels = _labels([label for _, label in pairs], "the list of samples")
    classes = tuple(str(label) for label in range(int(labels.max()) + 1))
    return Listing([os.fspath(path) for path, _ in pairs], labels, classes)


def _read_folder(dataset: Any) -> Listing:
    _check_method(dataset, _FOLDER, "__getitem__")
    loader = dataset.loader
    name = f"{getattr(loader, '__module__', '')}.{getattr(loader, '__qualname__', '')}"
    if name not in _PLAIN_LOADERS:
        raise UserError(
            f"{_named(dataset)} opens files by a loader of its own, but DALI decodes them itself; "
            "leave `loader` out, or use torch's DataLoader"
        )
    where = _named(dataset)
    labels = _labels([label for _, label in dataset.samples], where)
    classes = tuple(map(str, dataset.classes))
    labels, classes = _transformed(labels, classes, dataset.target_transform, where)
    paths, root = [os.fspath(path) for path, _ in dataset.samples], os.fspath(dataset.root)
    # Its classes may be without images, and its folders nested; the top one names the class.
    depth = root.rstrip("/").count("/") + 2  # of ROOT/CLASS/IMAGE
    is_nested = any(path.count("/") > depth for path in paths)
    reading = replace(
        _IMAGE_FOLDER,
        class_level="top" if is_nested else None,
        classes=tuple(map(str, dataset.classes)),
    )
    return Listing(paths, labels, classes, root, reading)


def _read_timm(dataset: Any) -> Listing:
    _check_method(dataset, _TIMM, "__getitem__")
    reader, where = dataset.reader, _named(dataset)
    if type(reader).__name__ != _TIMM_READER[1] or type(reader).__module__ != _TIMM_READER[0]:
        raise UserError(f"{where} reads by {_named(reader)}, whose files are not seen; {_ACCEPTED}")
    if dataset.input_img_mode != "RGB" or dataset.load_bytes or dataset.additional_features:
        raise UserError(f"{where} gives other than RGB images with a label; {_ACCEPTED}")
    labels = _labels([label for _, label in reader.samples], where)
    names = sorted(reader.class_to_idx, key=reader.class_to_idx.__getitem__)
    labels, classes = _transformed(labels, tuple(names), dataset.target_transform, where)
    paths = [path for path, _ in reader.samples]
    return Listing(paths, labels, classes, os.fspath(reader.root), _TIMMS)


def _read_subset(dataset: Any) -> Listing:
    _check_method(dataset, _SUBSET, "__getitem__")
    _check_method(dataset, _SUBSET, "__getitems__")
    inner = read_dataset(dataset.dataset)
    rows = checked_indices(dataset.indices, len(inner.paths), "Subset.indices", from_the_end=True)
    return inner.select(rows)


def _read_concat(dataset: Any) -> Listing:
    _check_method(dataset, _CONCAT, "__getitem__")
    parts = [read_dataset(part) for part in dataset.datasets]
    first = parts[0]
    for number, part in enumerate(parts[1:], start=1):
        for label in range(max(len(first.classes), len(part.classes))):
            names = [p.classes[label] if label < len(p.classes) else None for p in (first, part)]
            if names[0] != names[1]:
                raise UserError(
                    f"ConcatDataset: class {label} is {names[0] or 'missing'} in part 0 but "
                    f"{names[1] or 'missing'} in part {number}; give all parts the same classes, "
                    "by target_transform or the same folders"
                )
    roots = {part.root for part in parts}
    return Listing(
        [path for part in parts for path in part.paths],
        np.concatenate([part.labels for part in parts]),
        first.classes,
        first.root if len(roots) == 1 else None,
        first.reading,
    )


_READERS: tuple[tuple[tuple[str, str], Callable[[Any], Listing]], ...] = (
    (_FOLDER, _read_folder),
    (_SUBSET, _read_subset),
    (_CONCAT, _read_concat),
    (_TIMM, _read_timm),
)


def checked_indices(
    indices: Iterable[Any], size: int, what: str, from_the_end: bool = False
) -> npt.NDArray[np.int64]:
    """Indices of samples as int64 [n].

    Args:
        indices: whole numbers: an array, a tensor or any iterable.
        size: of the dataset.
        what: gives the indices, for messages.
        from_the_end: whether negative ones count from the end, as in a list.

    Raises:
        UserError: they are no whole numbers, or one is not from 0 to `size` - 1; it is named.
    """
    values = indices if isinstance(indices, np.ndarray) else np.asarray(_plain(indices))
    if values.dtype == np.bool_:
        raise UserError(f"{what} gives truth values; give np.flatnonzero(mask)")
    if values.size and (values.ndim != 1 or not np.issubdtype(values.dtype, np.integer)):
        raise UserError(
            f"{what} gives {_short(values.ravel()[0] if values.ndim == 1 else values.tolist()[0])}"
            "; give indices of samples, whole numbers from 0"
        )
    values = values.astype(np.int64)
    lowest = -size if from_the_end else 0
    wrong = np.flatnonzero((values < lowest) | (values >= size))
    if len(wrong):
        raise UserError(
            f"{what} gives index {values[wrong[0]]}, but the dataset has {size} samples; give "
            f"indices from 0 to {size - 1}"
        )
    return values % size if from_the_end and size else values


def _plain(indices: Iterable[Any]) -> list[Any]:
    """As Python's numbers: samplers may give tensors or NumPy's."""
    values = []
    for value in indices:
        is_scalar = getattr(value, "ndim", None) == 0
        values.append(value.item() if is_scalar and hasattr(value, "item") else value)
    if any(isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) for value in values):
        return [[0]]  # of lists: two axes, which is refused
    return values


def _labels(values: Sequence[Any], where: str) -> npt.NDArray[np.int64]:
    """Labels as class numbers, int64 [N]."""
    labels = np.array([_class_number(value, where) for value in values], np.int64)
    wrong = labels[(labels < 0) | (labels >= _MAX_CLASSES)]
    if len(wrong):
        raise UserError(f"label {wrong[0]} of {where} is no class number: count classes from 0")
    return labels


def _class_number(value: Any, where: str) -> int:
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(
            f"{where} gives the label {_short(value)}; DaliLoader takes class numbers, whole "
            "numbers from 0"
        )
    return value


def _transformed(
    labels: npt.NDArray[np.int64],
    classes: tuple[str, ...],
    transform: Callable[[int], Any] | None,
    where: str,
) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """Labels and class names behind a `target_transform`.

    A class gets the names of all the classes that become it, joined by "+".
    """
    if transform is None:
        return labels, classes
    where = f"the target_transform of {where}"
    present = set(labels.tolist())
    number: dict[int, int] = {}
    for label in sorted(present | set(range(len(classes)))):
        try:
            number[label] = _class_number(transform(label), where)
            again = _class_number(transform(label), where)
        except UserError:
            raise
        except Exception as error:
            if label not in present:
                continue  # a class without images, which the transform need not know
            raise UserError(f"{where} fails for label {label}: {_short(error)}") from error
        if again != number[label]:
            raise UserError(
                f"{where} gives {number[label]}, then {again} for label {label}; DaliLoader reads "
                "labels once: make it a function of the label"
            )
    names: dict[int, list[str]] = {}
    for label, new in number.items():
        names.setdefault(new, []).append(classes[label] if label < len(classes) else str(label))
    changed = _labels([number[label] for label in labels.tolist()], where)
    count = max(names) + 1
    return changed, tuple("+".join(names.get(i, [str(i)])) for i in range(count))


def _check_method(dataset: Any, base: tuple[str, str], method: str) -> None:
    """Refuse a subclass that gives samples in its own way."""
    defined_in = next(c for c in type(dataset).__mro__ if method in vars(c))
    if (defined_in.__module__, defined_in.__name__) != base:
        raise UserError(
            f"{_named(dataset)} gives samples by {method} of its own; {_ACCEPTED}, or use torch's "
            "DataLoader"
        )


def _is_a(value: object, module: str, name: str) -> bool:
    """Whether a value is of a class or of one derived from it; imports nothing."""
    return any((c.__module__, c.__name__) == (module, name) for c in type(value).__mro__)


def _named(value: object) -> str:
    return f"{type(value).__module__.partition('.')[0]}'s {type(value).__name__}"


def _short(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."
