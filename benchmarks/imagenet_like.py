"""Writes JPEG files with ImageNet's statistics, so that loaders can be measured without ImageNet.

    python -m benchmarks.imagenet_like OUT [--images 2000] [--classes 10] [--seed 0]

The pictures are crops, zooms and recolourings of photographs that scikit-image and scikit-learn
carry. What a loader's speed depends on is ImageNet's: file sizes, resolutions, chroma subsampling,
and the few files that are not RGB JPEGs. The same seed and Pillow give the same bytes.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import io
import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image

from dali_rsb.errors import UserError, run_command
from dali_rsb.system.atomic import atomic_directory
from dali_rsb.system.cpus import available_cpus

MANIFEST = "manifest.json"

# Mean file size of ImageNet's training set (MLPerf Storage's resnet50 workload description).
MEAN_FILE_BYTES = 114_660

# Share of each size (width, height). Half of ImageNet are landscape pictures of 500 px, Flickr's
# medium size; 1-2 % have a side above 1500 px.
SIZE_SHARES = {
    (500, 375): 0.36,
    (375, 500): 0.12,
    (500, 333): 0.14,
    (333, 500): 0.05,
    (500, 500): 0.05,
    (500, 400): 0.03,
    (400, 300): 0.05,
    (300, 400): 0.02,
    (320, 240): 0.05,
    (250, 250): 0.03,
    (200, 150): 0.02,
    (640, 480): 0.04,
    (800, 600): 0.015,
    (1024, 768): 0.01,
    (1600, 1200): 0.01,
    (2048, 1536): 0.005,
}
GREY_SHARE = 0.014
CMYK_SHARE = 0.001  # ImageNet has 22 in 1.28 million; here two in 2000, so that every run meets one
FULL_CHROMA_SHARE = 0.15
# ImageNet's n02105855_2933.JPEG is a PNG. This one is small: PNG takes five times JPEG's bytes.
PNG_SIZE = (250, 188)

# Spread of the bytes per pixel at one size (log scale), and how they fall with the size.
DENSITY_DEVIATION = 0.35
DENSITY_POWER = -0.25
QUALITIES = range(30, 100)
LARGEST_ZOOM = 1.2


@dataclass(frozen=True)
class ImagePlan:
    """What one file shall be; `kind` is "rgb", "grey", "cmyk" or "png"."""

    name: str
    kind: str
    size: tuple[int, int]  # width, height
    full_chroma: bool
    target_bytes: float
    seed: tuple[int, int]


def plan_images(num_images: int, num_classes: int, seed: int) -> list[ImagePlan]:
    """Choose kind, size and bytes of each file; their mean is MEAN_FILE_BYTES.

    The counts are exact shares, so that a small set has the large set's mean and cost.
    """
    rng = np.random.default_rng(seed)
    sizes = [list(SIZE_SHARES)[i] for i in _exact_shares(list(SIZE_SHARES.values()), num_images)]
    num_grey, num_cmyk = (max(1, round(num_images * s)) for s in (GREY_SHARE, CMYK_SHARE))
    kinds = ["png"] + ["cmyk"] * num_cmyk + ["grey"] * num_grey
    kinds += ["rgb"] * (num_images - len(kinds))
    order = rng.permutation(num_images)
    sizes = [sizes[i] if kind != "png" else PNG_SIZE for i, kind in zip(order, kinds, strict=True)]
    pixels = np.array([width * height for width, height in sizes], np.float64)
    spread = np.exp(DENSITY_DEVIATION * rng.standard_normal(num_images))
    target_bytes = pixels ** (1 + DENSITY_POWER) * spread
    target_bytes *= MEAN_FILE_BYTES / target_bytes.mean()
    full_chroma = rng.random(num_images) < FULL_CHROMA_SHARE
    plans = []
    for number, place in enumerate(rng.permutation(num_images).tolist()):
        label, in_class = place % num_classes, place // num_classes
        name = f"n{label:08d}/n{label:08d}_{in_class}.JPEG"
        plans.append(
            ImagePlan(
                name,
                kinds[number],
                sizes[number],
                bool(full_chroma[number]),
                float(target_bytes[number]),
                (seed, number),
            )
        )
    return sorted(plans, key=lambda plan: plan.name)


def _exact_shares(shares: Sequence[float], count: int) -> npt.NDArray[np.intp]:
    """[count] positions in `shares`, each as often as its share says, by largest remainder."""
    exact = np.array(shares) / np.sum(shares) * count
    counts = np.floor(exact).astype(np.intp)
    largest = np.argsort(counts - exact, kind="stable")[: count - counts.sum()]
    counts[largest] += 1
    return np.repeat(np.arange(len(counts)), counts)


@functools.cache
def _photographs() -> tuple[Image.Image, ...]:
    try:
        from skimage import data
        from sklearn.datasets import load_sample_images
    except ImportError as error:
        raise UserError(
            "the photographs come with scikit-image and scikit-learn: "
            "run pip install -c constraints.txt -e '.[test]'"
        ) from error
    arrays = [
        data.astronaut(),
        data.chelsea(),
        data.coffee(),
        data.rocket(),
        data.hubble_deep_field(),
        *data.stereo_motorcycle()[:2],
        *load_sample_images().images,
    ]
    return tuple(Image.fromarray(array).convert("RGB") for array in arrays)


def encode(plan: ImagePlan) -> bytes:
    """Make the picture of a plan and encode it, as near to the planned bytes as quality allows."""
    picture = _picture(plan.size, np.random.default_rng(plan.seed))
    if plan.kind == "png":
        return _saved(picture, format="PNG")
    picture = picture.convert({"rgb": "RGB", "grey": "L", "cmyk": "CMYK"}[plan.kind])
    subsampling = "4:4:4" if plan.full_chroma else "4:2:0"
    low, high = 0, len(QUALITIES) - 1
    encoded: dict[int, bytes] = {}
    # File size grows with quality: bisect, then take the nearer of the two neighbours.
    while low <= high:
        middle = (low + high) // 2
        encoded[middle] = _saved(
            picture, format="JPEG", quality=QUALITIES[middle], subsampling=subsampling
        )
        if len(encoded[middle]) < plan.target_bytes:
            low = middle + 1
        else:
            high = middle - 1
    return min(encoded.values(), key=lambda data: abs(len(data) - plan.target_bytes))


def _picture(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """A window of a photograph, resized, perhaps mirrored, recoloured and with sensor noise."""
    photographs = _photographs()
    photograph = photographs[rng.integers(len(photographs))]
    # The largest window of this aspect ratio, down to a zoom at which pictures become blurred.
    fitting = min(photograph.width / size[0], photograph.height / size[1])
    scale = rng.uniform(min(fitting, 1 / LARGEST_ZOOM), fitting)
    width, height = size[0] * scale, size[1] * scale
    left = rng.uniform(0, photograph.width - width)
    top = rng.uniform(0, photograph.height - height)
    picture = photograph.resize(
        size, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height)
    )
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    gain = rng.uniform(0.8, 1.25) * rng.uniform(0.9, 1.1, 3)
    pixels = np.asarray(picture, np.float32) * gain.astype(np.float32)
    noise = rng.standard_normal((size[1], size[0], 1), np.float32)
    pixels += noise * np.float32(rng.uniform(6, 16))
    return Image.fromarray(np.clip(pixels + 0.5, 0, 255).astype(np.uint8))


def _saved(picture: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, **options)
    return buffer.getvalue()


def write_imagenet_like(
    root: Path, num_images: int = 2000, num_classes: int = 10, seed: int = 0
) -> dict[str, Any]:
    """Write `root/nXXXXXXXX/nXXXXXXXX_N.JPEG` and `root/manifest.json`.

    Returns:
        The manifest: arguments, Pillow's version, statistics and the checksum of all files.

    Raises:
        UserError: `root` is not empty, or there are too few images for the classes.
    """
    if num_images < max(num_classes, 4):
        raise UserError(f"--images {num_images} is too few; give at least {max(num_classes, 4)}")
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UserError(f"{root} is not an empty folder; give a new one")
    plans = plan_images(num_images, num_classes, seed)
    root = root.absolute()
    root.parent.mkdir(parents=True, exist_ok=True)
    digests, file_bytes = {}, []
    with atomic_directory(root) as directory, ProcessPoolExecutor(available_cpus()) as pool:
        for label in range(num_classes):
            (directory / f"n{label:08d}").mkdir()
        for plan, data in zip(plans, pool.map(encode, plans, chunksize=8), strict=True):
            (directory / plan.name).write_bytes(data)
            digests[plan.name] = hashlib.sha256(data).hexdigest()
            file_bytes.append(len(data))
        manifest = {
            "images": num_images,
            "classes": num_classes,
            "seed": seed,
            "pillow": PIL.__version__,
            "mean_bytes": round(float(np.mean(file_bytes))),
            "sizes": dict(Counter("{}x{}".format(*plan.size) for plan in plans).most_common()),
            "kinds": dict(Counter(plan.kind for plan in plans).most_common()),
            "sha256": files_checksum(digests),
        }
        (directory / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return manifest


def files_checksum(digests: dict[str, str]) -> str:
    """SHA-256 over the sorted lines "digest  path", as `sha256sum` prints them."""
    lines = "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))
    return hashlib.sha256(lines.encode()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="new folder for the images")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    manifest = write_imagenet_like(
        arguments.out, arguments.images, arguments.classes, arguments.seed
    )
    print(json.dumps(manifest, indent=2))


if __name__ == "__main__":
    run_command(main)
