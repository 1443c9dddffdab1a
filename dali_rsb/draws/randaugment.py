"""RandAugment on the host: timm's policy strings, the draws, and the operands of the DALI graph.

The pixels are computed by `pipelines.randaugment`; nothing here touches an image.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dali_rsb.errors import UserError
from pipelines.randaugment import Branch, branch_input, matrix_input, value_input

# timm's set, in its order, under timm's names for the set that does not increase.
OPERATIONS = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",
    "Posterize",
    "Solarize",
    "SolarizeAdd",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateXRel",
    "TranslateYRel",
)

_BRANCHES = {
    "AutoContrast": Branch.AUTO_CONTRAST,
    "Equalize": Branch.EQUALIZE,
    "Invert": Branch.SOLARIZE,
    "Rotate": Branch.WARP,
    "Posterize": Branch.POSTERIZE,
    "Solarize": Branch.SOLARIZE,
    "SolarizeAdd": Branch.SOLARIZE_ADD,
    "Color": Branch.COLOR,
    "Contrast": Branch.CONTRAST,
    "Brightness": Branch.BRIGHTNESS,
    "Sharpness": Branch.SHARPNESS,
    "ShearX": Branch.WARP,
    "ShearY": Branch.WARP,
    "TranslateXRel": Branch.WARP,
    "TranslateYRel": Branch.WARP,
}

# The last entry is read by operation -1: not applied.
_BRANCH_CODES = np.array([*(_BRANCHES[name] for name in OPERATIONS), Branch.SKIP], dtype=np.uint8)

# The magnitude at which an operation reaches the end of its range, and timm's upper clip unless
# the policy sets `mmax`.
FULL_MAGNITUDE = 10

_UNIFORMS_PER_LAYER = 5


@dataclass(frozen=True)
class RandAugmentDraws:
    """What a batch drew; all arrays are [batch, layers].

    Attributes:
        operation: int8, an index into `OPERATIONS`, or -1 where the layer is not applied.
        magnitude: float64, noise added and clipped.
        negate: bool, whether the operations that have two directions take the negative one.
    """

    operation: NDArray[np.int8]
    magnitude: NDArray[np.float64]
    negate: NDArray[np.bool_]


@dataclass(frozen=True)
class RandAugmentPolicy:
    """A RandAugment policy with the meaning that timm 1.0.31 gives to its string.

    Attributes:
        magnitude: the M of the paper, in tenths of each operation's range.
        num_layers: operations drawn per image, with replacement.
        probability: of applying each of them.
        magnitude_std: deviation of the Gaussian noise on the magnitude; infinity draws the
            magnitude uniformly from 0 to `magnitude`.
        magnitude_max: upper clip of the magnitude. Above 10 the ranges go on in a straight line,
            as in TensorFlow's RandAugment, whose M of ResNet-RS is `rand-m15-mmax15`.
        increasing: whether Posterize, Solarize and the enhancing operations grow stronger with
            the magnitude.
    """

    magnitude: int = FULL_MAGNITUDE
    num_layers: int = 2
    probability: float = 0.5
    magnitude_std: float = 0.0
    magnitude_max: int = FULL_MAGNITUDE
    increasing: bool = False

    @classmethod
    def parse(cls, policy: str) -> RandAugmentPolicy:
        """Read a timm string such as `rand-m7-mstd0.5-inc1`.

        The tokens are `mN` magnitude, `nN` layers, `pF` probability, `mstdF` noise (above 100:
        uniform), `mmaxN` upper clip, `incN` increasing set unless N is 0. As in timm 1.0.31, the
        first `mstd` and `mmax` count and the last of the others. Older versions of timm took
        `inc0` for `inc1`.

        Raises:
            UserError: for another policy than `rand`, a token that timm does not know or would
                silently ignore, a value out of range, or a transform set (`tNAME`).
        """
        head, *tokens = policy.split("-")
        if head != "rand":
            raise UserError(f"auto-augment policy {policy!r}: must begin with 'rand', not {head!r}")
        fields: dict[str, float] = {}
        for token in tokens:
            key, number = _parse_token(policy, token)
            if key in ("mstd", "mmax"):
                fields.setdefault(key, number)
            else:
                fields[key] = number
        magnitude_std = fields.get("mstd", cls.magnitude_std)
        return cls(
            magnitude=int(fields.get("m", cls.magnitude)),
            num_layers=int(fields.get("n", cls.num_layers)),
            probability=fields.get("p", cls.probability),
            magnitude_std=float("inf") if magnitude_std > 100 else magnitude_std,
            # timm takes an upper clip of 0 for one that is not set.
            magnitude_max=int(fields.get("mmax", 0)) or cls.magnitude_max,
            increasing=bool(fields.get("inc", cls.increasing)),
        )

    @property
    def num_uniforms(self) -> int:
        """How many uniform numbers one sample takes; it depends on the number of layers only."""
        return _UNIFORMS_PER_LAYER * self.num_layers

    def draw(self, uniforms: NDArray[np.float64]) -> RandAugmentDraws:
        """Turn uniform numbers into operations, magnitudes and directions.

        timm also draws bilinear or bicubic resampling for each geometric operation. No warp of
        DALI has Pillow's bicubic kernel, so the graph is always bilinear and nothing is drawn.

        Args:
            uniforms: [batch, num_uniforms] in [0, 1).
        """
        batch_size = len(uniforms)
        if uniforms.shape != (batch_size, self.num_uniforms):
            raise ValueError(f"expected [batch, {self.num_uniforms}] numbers, got {uniforms.shape}")
        choice, application, direction, noise, angle = np.moveaxis(
            uniforms.reshape(batch_size, self.num_layers, _UNIFORMS_PER_LAYER), 2, 0
        )
        operation = (choice * len(OPERATIONS)).astype(np.int8)
        operation[application >= self.probability] = -1
        if self.magnitude_std == float("inf"):
            magnitude = noise * self.magnitude
        else:
            # Box and Muller (1958); 1 - noise is never 0.
            normal = np.sqrt(-2 * np.log1p(-noise)) * np.cos(2 * np.pi * angle)
            magnitude = self.magnitude + self.magnitude_std * normal
        return RandAugmentDraws(
            operation=operation,
            magnitude=np.clip(magnitude, 0, self.magnitude_max),
            negate=direction < 0.5,
        )

    def to_operands(
        self, draws: RandAugmentDraws, size_px: tuple[int, int]
    ) -> dict[str, NDArray[np.generic]]:
        """Return the inputs of `pipelines.randaugment.rand_augment`, by name.

        Args:
            draws: of this policy.
            size_px: height and width of the images.
        """
        branches = _BRANCH_CODES[draws.operation]
        values = self._values(draws).astype(np.float32)
        matrices = _warp_matrices(draws, size_px).astype(np.float32)
        operands: dict[str, NDArray[np.generic]] = {}
        for layer in range(self.num_layers):
            operands[branch_input(layer)] = np.ascontiguousarray(branches[:, layer])
            operands[value_input(layer)] = np.ascontiguousarray(values[:, layer])
            operands[matrix_input(layer)] = np.ascontiguousarray(matrices[:, layer])
        return operands

    def _values(self, draws: RandAugmentDraws) -> NDArray[np.float64]:
        """Return the argument of each point, colour or blending operation: [batch, layers]."""
        level = draws.magnitude / FULL_MAGNITUDE
        # `int` truncates in timm, as the conversions to integers do here. Without a bit left the
        # image is black; Pillow 13 raises there, older versions did the same as this.
        num_bits = (level * 4).astype(np.int64)
        threshold = np.minimum(256, (level * 256).astype(np.int64))
        if self.increasing:
            num_bits = 4 - num_bits
            threshold = 256 - threshold
            factor = np.maximum(0.1, 1 + level * 0.9 * np.where(draws.negate, -1, 1))
        else:
            factor = level * 1.8 + 0.1
        values = np.zeros(level.shape)  # also the threshold that makes Solarize an Invert
        for name, argument in (
            ("Posterize", 256 - 2 ** (8 - np.clip(num_bits, 0, 8))),
            ("Solarize", threshold),
            ("SolarizeAdd", np.minimum(128, (level * 110).astype(np.int64))),
            ("Color", factor),
            ("Contrast", factor),
            ("Brightness", factor),
            ("Sharpness", factor),
        ):
            values = np.where(_is(draws, name), argument, values)
        return values


def fill_color(mean: Sequence[float]) -> tuple[int, int, int]:
    """Return the colour that timm fills with: the mean of the normalisation, in levels.

    (124, 116, 104) for the mean of ImageNet.
    """
    red, green, blue = (min(255, round(255 * channel)) for channel in mean)
    return red, green, blue


def _parse_token(policy: str, token: str) -> tuple[str, float]:
    where = f"auto-augment policy {policy!r}: token {token!r}"
    if token.startswith("t"):
        raise UserError(f"{where} names a transform set; only timm's default set is supported")
    match = re.fullmatch(r"(mstd|mmax|inc|m|n|p)(\d.*)", token)
    if match is None:
        raise UserError(
            f"{where} is not one of mN, nN, pF, mstdF, mmaxN, incN with a number (for uniform "
            "magnitudes write mstd101)"
        )
    key, text = match.groups()
    try:
        number = float(text) if key in ("mstd", "p") else int(text)
    except ValueError:
        kind = "a number" if key in ("mstd", "p") else "a whole number"
        raise UserError(f"{where} needs {kind} after {key!r}") from None
    if key == "n" and number < 1:
        raise UserError(f"{where} must leave one layer at least; leave the policy out for none")
    if key == "p" and number > 1:
        raise UserError(f"{where} must be a probability from 0 to 1")
    return key, number


def _is(draws: RandAugmentDraws, name: str) -> NDArray[np.bool_]:
    return draws.operation == OPERATIONS.index(name)


def _warp_matrices(draws: RandAugmentDraws, size_px: tuple[int, int]) -> NDArray[np.float64]:
    """Return the matrices of the geometric operations: [batch, layers, 3, 3], else the identity.

    Written for corners of pixels at whole numbers, as in Pillow, then moved to centres. Rotate
    turns about the middle of the image, the shears keep the top-left corner where it is.
    """
    height_px, width_px = size_px
    signed_level = draws.magnitude / FULL_MAGNITUDE * np.where(draws.negate, -1, 1)
    radians = np.where(_is(draws, "Rotate"), -np.radians(signed_level * 30), 0)
    cosine, sine = np.cos(radians), np.sin(radians)
    matrices = np.zeros((*signed_level.shape, 3, 3))
    matrices[..., 0, 0] = cosine
    matrices[..., 0, 1] = sine + np.where(_is(draws, "ShearX"), signed_level * 0.3, 0)
    matrices[..., 1, 0] = -sine + np.where(_is(draws, "ShearY"), signed_level * 0.3, 0)
    matrices[..., 1, 1] = cosine
    matrices[..., 2, 2] = 1
    middle_x, middle_y = width_px / 2, height_px / 2
    matrices[..., 0, 2] = middle_x - cosine * middle_x - sine * middle_y
    matrices[..., 1, 2] = middle_y + sine * middle_x - cosine * middle_y
    matrices[..., 0, 2] += np.where(_is(draws, "TranslateXRel"), signed_level * 0.45 * width_px, 0)
    matrices[..., 1, 2] += np.where(_is(draws, "TranslateYRel"), signed_level * 0.45 * height_px, 0)
    matrices[..., :2, 2] += (matrices[..., :2, 0] + matrices[..., :2, 1] - 1) / 2
    return matrices
