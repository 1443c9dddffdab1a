"""The quickstart's data: scikit-learn's handwritten digits as a folder of JPEG files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from dali_rsb.errors import UserError
from dali_rsb.system.atomic import atomic_directory

_META = "digits.json"
_SPLIT_SEED = 0
_MAX_LEVEL = 16  # load_digits counts the dark pixels in each 4x4 block of a 32x32 scan


def write_digits(root: Path, size_px: int = 32, val_fraction: float = 0.2) -> tuple[Path, Path]:
    """Write the 1,797 digits of scikit-learn's `load_digits` as class folders of JPEG files.

    The 8x8 images are enlarged to `size_px` (bicubic), RGB, JPEG quality 95, and lie in
    `root/train/DIGIT/NNNN.jpg` and `root/val/DIGIT/NNNN.jpg`. The split is the same each time and
    takes `val_fraction` of every digit. What an earlier call has written is used again, or
    replaced if it was written with other arguments. Nothing is downloaded.

    Returns:
        The train folder and the val folder.

    Raises:
        UserError: scikit-learn is missing, an argument is out of range, or `root` holds something
            that this function has not written.
    """
    if size_px < 1:
        raise UserError(f"size_px is {size_px}: give at least 1")
    if not 0 < val_fraction < 1:
        raise UserError(f"val_fraction is {val_fraction}: give a number between 0 and 1")
    root = Path(root).expanduser().absolute()
    train, val = root / "train", root / "val"
    meta = json.dumps({"size_px": size_px, "val_fraction": val_fraction, "format_version": 1})
    if (root / _META).is_file():
        if (root / _META).read_text(encoding="utf-8") == meta:
            return train, val
    elif root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UserError(f"{root} holds something other than the digits: give a new folder")
    images, digits = _load_digits()
    root.parent.mkdir(parents=True, exist_ok=True)
    with atomic_directory(root) as directory:
        for split in (train, val):
            for digit in range(10):
                (directory / split.name / str(digit)).mkdir(parents=True)
        is_val = _choose_val(digits, val_fraction)
        for number, (image, digit) in enumerate(zip(images, digits.tolist(), strict=True)):
            split = val if is_val[number] else train
            large = Image.fromarray(image).resize((size_px, size_px), Image.Resampling.BICUBIC)
            path = directory / split.name / str(digit) / f"{number:04d}.jpg"
            large.convert("RGB").save(path, quality=95)
        (directory / _META).write_text(meta, encoding="utf-8")
    return train, val


def _load_digits() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """uint8 [1797, 8, 8], black to white, and int64 [1797]."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError(
            "the quickstart's digits come with scikit-learn, which is not installed: "
            "run pip install -c constraints.txt -e '.[quickstart]'"
        ) from error
    bundle = load_digits()
    return np.rint(bundle.images * (255 / _MAX_LEVEL)).astype(np.uint8), bundle.target


def _choose_val(digits: npt.NDArray[np.int64], val_fraction: float) -> npt.NDArray[np.bool_]:
    """Mask [N] with `val_fraction` of each digit's images, at least one and not all of them."""
    random = np.random.Generator(np.random.Philox(_SPLIT_SEED))
    is_val = np.zeros(len(digits), np.bool_)
    for digit in range(10):
        shuffled = random.permutation(np.flatnonzero(digits == digit))
        num_val = min(max(1, round(val_fraction * len(shuffled))), len(shuffled) - 1)
        is_val[shuffled[:num_val]] = True
    return is_val
