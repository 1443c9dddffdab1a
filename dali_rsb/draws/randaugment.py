"""RandAugment on the host: policies, draws, and the operands of the DALI pipeline.

The pixels are computed by `pipelines.randaugment`; nothing here touches an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dali_rsb.draws.operations import OPERATION_SETS, OPERATIONS, RECORDS, Strength
from dali_rsb.draws.policy import parse_tokens
from dali_rsb.errors import UserError
from pipelines.operands import Branch, branch_input, matrix_input, value_input

__all__ = ["FULL_MAGNITUDE", "OPERATIONS", "RandAugmentDraws", "RandAugmentPolicy", "fill_color"]

# The last entry is read by operation -1: not applied.
_BRANCH_CODES = np.array([*(record.branch for record in RECORDS), Branch.SKIP], dtype=np.uint8)

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
        values, matrices = (array.astype(np.float32) for array in self._arguments(draws, size_px))
        operands: dict[str, NDArray[np.generic]] = {}
        for layer in range(self.num_layers):
            operands[branch_input(layer)] = np.ascontiguousarray(branches[:, layer])
            operands[value_input(layer)] = np.ascontiguousarray(values[:, layer])
            operands[matrix_input(layer)] = np.ascontiguousarray(matrices[:, layer])
        return operands

    def strength(self, magnitude: NDArray[np.float64], negate: NDArray[np.bool_]) -> Strength:
        """What some drawn magnitudes mean under this policy."""
        level = magnitude / FULL_MAGNITUDE
        return Strength(level, level * np.where(negate, -1, 1), self.increasing)

    def _arguments(
        self, draws: RandAugmentDraws, size_px: tuple[int, int]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Values [batch, layers] and warp matrices [batch, layers, 3, 3], else the identity."""
        values = np.zeros(draws.operation.shape)
        matrices = np.broadcast_to(np.eye(3), (*values.shape, 3, 3)).copy()
        for number in OPERATION_SETS[self.operation_set]:
            record, drawn = RECORDS[number], draws.operation == number
            if not drawn.any():
                continue
            strength = self.strength(draws.magnitude[drawn], draws.negate[drawn])
            if record.value is not None:
                values[drawn] = record.value(strength)
            if record.warp is not None:
                rows = np.broadcast_arrays(*record.warp(strength, *size_px), strength.level)[:-1]
                matrices[drawn, :2] = np.stack(rows, axis=-1).reshape(-1, 2, 3)
        # From corners of pixels at whole numbers, as in Pillow, to centres.
        matrices[..., :2, 2] += (matrices[..., :2, 0] + matrices[..., :2, 1] - 1) / 2
        return values, matrices


def fill_color(mean: Sequence[float]) -> tuple[int, int, int]:
    """Return the colour that timm fills with: the mean of the normalisation, in levels.

    (124, 116, 104) for the mean of ImageNet.
    """
    red, green, blue = (min(255, round(255 * channel)) for channel in mean)
    return red, green, blue
