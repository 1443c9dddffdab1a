"""The transforms of a recipe with Pillow alone, one image at a time: what `dali_rsb.parity`
compares the DALI graphs with. The tests compare these functions with timm's."""

from __future__ import annotations

from PIL import Image, ImageEnhance, ImageOps

from dali_rsb.draws.crops import EvalGeometry

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def crop_resize_flip(
    image: Image.Image,
    box: tuple[int, int, int, int],
    size_px: int,
    interpolation: str,
    flip: bool,
) -> Image.Image:
    """RandomResizedCrop once its window is chosen, then the mirroring.

    Args:
        box: left, top, right, bottom.
        interpolation: "bilinear" or "bicubic".
    """
    image = image.crop(box).resize((size_px, size_px), FILTERS[interpolation])
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image


def eval_transform(image: Image.Image, geometry: EvalGeometry, interpolation: str) -> Image.Image:
    """Resize the shorter edge to `geometry.resize_px`, then take the centre."""
    shorter = min(image.size)
    width, height = (int(geometry.resize_px * side / shorter) for side in image.size)
    image = image.resize((width, height), FILTERS[interpolation])
    size = geometry.size_px
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def apply_operation(
    image: Image.Image,
    name: str,
    magnitude: float,
    negate: bool,
    increasing: bool,
    fill: tuple[int, int, int],
    interpolation: str = "bilinear",
) -> Image.Image:
    """One operation of timm's RandAugment; `name` is one of `randaugment.OPERATIONS`.

    Args:
        magnitude: after noise and clipping.
        negate: take the negative direction, where there are two.
        increasing: of the increasing set (`inc1`).
        fill: colour of what geometric operations bring in.
        interpolation: of the geometric operations.
    """
    level = magnitude / 10
    signed = -level if negate else level
    if name == "AutoContrast":
        return ImageOps.autocontrast(image)
    if name == "Equalize":
        return ImageOps.equalize(image)
    if name == "Invert":
        return ImageOps.invert(image)
    if name == "Posterize":
        num_bits = 4 - int(4 * level) if increasing else int(4 * level)
        # No bit left: black, as in Pillow 12 and older; Pillow 13 raises.
        return ImageOps.posterize(image, num_bits) if num_bits > 0 else Image.new("RGB", image.size)
    if name == "Solarize":
        threshold = min(256, int(256 * level))
        return ImageOps.solarize(image, 256 - threshold if increasing else threshold)
    if name == "SolarizeAdd":
        addend = min(128, int(110 * level))
        return image.point([min(255, v + addend) if v < 128 else v for v in range(256)] * 3)
    if name in ("Color", "Contrast", "Brightness", "Sharpness"):
        factor = max(0.1, 1 + 0.9 * signed) if increasing else 0.1 + 1.8 * level
        enhance: ImageEnhance._Enhance = getattr(ImageEnhance, name)(image)
        return enhance.enhance(factor)
    if name == "Rotate":
        return image.rotate(30 * signed, FILTERS[interpolation], fillcolor=fill)
    width, height = image.size
    matrix = {
        "ShearX": (1, 0.3 * signed, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, 0.3 * signed, 1, 0),
        "TranslateXRel": (1, 0, 0.45 * signed * width, 0, 1, 0),
        "TranslateYRel": (1, 0, 0, 0, 1, 0.45 * signed * height),
    }[name]
    affine = Image.Transform.AFFINE
    return image.transform(image.size, affine, matrix, FILTERS[interpolation], fillcolor=fill)
