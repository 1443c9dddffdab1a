"""RandAugment on the host: policies, draws, and the operands of those who compute the pixels.

Pixels are the work of `pipelines.randaugment` and `dali_rsb.kernels.rand_augment`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dali_rsb.draws.operations import (
    FULL_MAGNITUDE,
    OPERATION_SETS,
    OPERATIONS,
    RECORDS,
    Strength,
)
from dali_rsb.draws.policy import parse_tokens
from dali_rsb.errors import UserError
from pipelines.operands import Branch, branch_input, matrix_input, value_input

__all__ = [
    "FULL_MAGNITUDE",
    "OPERATIONS",
    "RandAugmentDraws",
    "RandAugmentOperands",
    "RandAugmentPolicy",
    "fill_color",
]

# The last entry is read by operation -1: not applied.
_BRANCH_CODES = np.array([*(record.branch for record in RECORDS), Branch.SKIP], dtype=np.uint8)

_UNIFORMS_PER_LAYER = 5


@dataclass(frozen=True)
class RandAugmentOperands:
    """What the operations of a batch come to, for images of one size.

    Attributes:
        branch: uint8 [batch, layers], codes of `Branch`.
        value: float32 [batch, layers], the argument of a point, colour or blending operation.
        matrix: float64 [batch, layers, 2, 3], maps output to input positions (x, y, 1) in pixels,
            whole numbers at the corners of pixels: what Pillow's Image.transform takes, to the
            bit. The identity where the operation is no warp.
    """

    branch: NDArray[np.uint8]
    value: NDArray[np.float32]
    matrix: NDArray[np.float64]


@dataclass(frozen=True)
class RandAugmentDraws:
    """What a batch drew.

    Attributes:
        operation: int8 [batch, layers], an index into `OPERATIONS`, or -1 where the layer is not
            applied.
        magnitude: float64 [batch, layers], noise added and clipped.
        negate: bool [batch, layers], whether the operations that have two directions take the
            negative one.
        increasing: whether the magnitudes are those of the increasing set; see
            `RandAugmentPolicy`.
    """

    operation: NDArray[np.int8]
    magnitude: NDArray[np.float64]
    negate: NDArray[np.bool_]
    increasing: bool

    def operands(self, size_px: tuple[int, int]) -> RandAugmentOperands:
        """What the draws come to for images of a height and width."""
        values = np.zeros(self.operation.shape, np.float32)
        matrices = np.broadcast_to(np.eye(2, 3), (*values.shape, 2, 3)).copy()
        for number, record in enumerate(RECORDS):
            drawn = self.operation == number
            if not drawn.any():
                continue
            strength = Strength.drawn(self.magnitude[drawn], self.negate[drawn], self.increasing)
            if record.value is not None:
                values[drawn] = record.value(strength)
            if record.warp is not None:
                rows = np.broadcast_arrays(*record.warp(strength, *size_px), strength.level)[:-1]
                matrices[drawn] = np.stack(rows, axis=-1).reshape(-1, 2, 3)
        return RandAugmentOperands(_BRANCH_CODES[self.operation], values, matrices)


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
        operation_set: name of the set in `operations.OPERATION_SETS` that operations are drawn
            from.
    """

    magnitude: int = FULL_MAGNITUDE
    num_layers: int = 2
    probability: float = 0.5
    magnitude_std: float = 0.0
    magnitude_max: int = FULL_MAGNITUDE
    increasing: bool = False
    operation_set: str = "timm"

    @classmethod
    def parse(cls, policy: str) -> RandAugmentPolicy:
        """Read a timm string such as `rand-m7-mstd0.5-inc1`; see `dali_rsb.draws.policy`.

        Raises:
            UserError: the string is malformed, or names an unknown set of operations.
        """
        tokens = parse_tokens(policy)
        operation_set = str(tokens.pop("t", cls.operation_set))
        if operation_set not in OPERATION_SETS:
            raise UserError(
                f"auto-augment policy {policy!r}: token 't{operation_set}' names a transform set "
                f"that is not one of {', '.join(OPERATION_SETS)}; leave it out for timm's"
            )
        fields = {key: float(number) for key, number in tokens.items()}
        magnitude_std = fields.get("mstd", cls.magnitude_std)
        return cls(
            magnitude=int(fields.get("m", cls.magnitude)),
            num_layers=int(fields.get("n", cls.num_layers)),
            probability=fields.get("p", cls.probability),
            magnitude_std=float("inf") if magnitude_std > 100 else magnitude_std,
            # timm takes an upper clip of 0 for one that is not set.
            magnitude_max=int(fields.get("mmax", 0)) or cls.magnitude_max,
            increasing=bool(fields.get("inc", cls.increasing)),
            operation_set=operation_set,
        )

    @property
    def num_uniforms(self) -> int:
        """How many uniform numbers one sample takes; it depends on the number of layers only."""
        return _UNIFORMS_PER_LAYER * self.num_layers

    def draw(self, uniforms: NDArray[np.float64]) -> RandAugmentDraws:
        """Turn uniform numbers into operations, magnitudes and directions.

        timm also draws bilinear or bicubic resampling for each geometric operation. No warp of
        DALI has Pillow's bicubic kernel, so a warp is always bilinear and nothing is drawn.

        Args:
            uniforms: [batch, num_uniforms] in [0, 1).
        """
        batch_size = len(uniforms)
        if uniforms.shape != (batch_size, self.num_uniforms):
            raise ValueError(f"expected [batch, {self.num_uniforms}] numbers, got {uniforms.shape}")
        choice, application, direction, noise, angle = np.moveaxis(
            uniforms.reshape(batch_size, self.num_layers, _UNIFORMS_PER_LAYER), 2, 0
        )
        members = np.array(OPERATION_SETS[self.operation_set], np.int8)
        operation = members[(choice * len(members)).astype(np.int64)]
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
            increasing=self.increasing,
        )

    def to_operands(
        self, draws: RandAugmentDraws, size_px: tuple[int, int]
    ) -> dict[str, NDArray[np.generic]]:
        """Return the inputs of `pipelines.randaugment.rand_augment`, by name.

        Args:
            draws: of this policy.
            size_px: height and width of the images.
        """
        drawn = draws.operands(size_px)
        matrices = np.broadcast_to(np.eye(3), (*drawn.value.shape, 3, 3)).copy()
        matrices[..., :2, :] = drawn.matrix
        # From corners of pixels at whole numbers, as in Pillow, to centres.
        matrices[..., :2, 2] += (matrices[..., :2, 0] + matrices[..., :2, 1] - 1) / 2
        matrices = matrices.astype(np.float32)
        operands: dict[str, NDArray[np.generic]] = {}
        for layer in range(self.num_layers):
            operands[branch_input(layer)] = np.ascontiguousarray(drawn.branch[:, layer])
            operands[value_input(layer)] = np.ascontiguousarray(drawn.value[:, layer])
            operands[matrix_input(layer)] = np.ascontiguousarray(matrices[:, layer])
        return operands


def fill_color(mean: Sequence[float]) -> tuple[int, int, int]:
    """Return the colour that timm fills with: the mean of the normalisation, in levels.

    (124, 116, 104) for the mean of ImageNet.
    """
    red, green, blue = (min(255, round(255 * channel)) for channel in mean)
    return red, green, blue
