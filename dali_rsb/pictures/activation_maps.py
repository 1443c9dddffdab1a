"""Class activation maps by torchcam: where in an image a network finds what speaks for a class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from dali_rsb.errors import UserError, suggestion

Method = Literal["gradcam", "gradcam++", "layercam"]
METHODS: dict[Method, str] = {
    "gradcam": "GradCAM",  # Selvaraju et al. 2017, arXiv:1610.02391
    "gradcam++": "GradCAMpp",  # Chattopadhay et al. 2018, arXiv:1710.11063
    "layercam": "LayerCAM",  # Jiang et al. 2021
}
# Share of the photograph in a picture of both, and the least side of such a picture in pixels.
_PHOTOGRAPH = 0.55
_COLOURS = "inferno"  # black where the map is 0, so that the photograph keeps its hues there
_MIN_SIDE_PX = 224


@dataclass(frozen=True, eq=False)
class Maps:
    """What one network says of B images, and where in them it finds one class of each.

    Attributes:
        probabilities: float32 [B, number of classes], of the softmax.
        targets: int64 [B], the classes whose maps these are.
        heat: float32 [B, h, w], the maps in the layer's resolution: 0 where least speaks for the
            class, 1 where most does; 0 everywhere where nothing speaks for it.
    """

    probabilities: npt.NDArray[np.float32]
    targets: npt.NDArray[np.int64]
    heat: npt.NDArray[np.float32]

    @property
    def predicted(self) -> npt.NDArray[np.int64]:
        """int64 [B], the likeliest classes."""
        return self.probabilities.argmax(1)


def activation_maps(
    model: nn.Module,
    images: Tensor,
    layer: str,
    targets: Sequence[int] | None = None,
    method: Method = "gradcam",
) -> Maps:
    """The maps of some images.

    Args:
        model: in evaluation mode, maps float32 [B, 3, H, W] to logits [B, number of classes].
        images: float32 [B, 3, H, W], normalised, on the model's device.
        layer: name of the layer whose activations are weighed, see `choose_layer`.
        targets: the class of each image; None for the likeliest ones.
    """
    from torchcam import methods

    extractor_class = getattr(methods, METHODS[method])
    with torch.enable_grad(), extractor_class(model, target_layer=layer) as extractor:
        logits = model(images)
        chosen = logits.argmax(1).tolist() if targets is None else list(targets)
        (heat,) = extractor(class_idx=chosen, scores=logits)
    probabilities = logits.detach().float().softmax(1)
    return Maps(probabilities.cpu().numpy(), np.array(chosen, np.int64), heat.float().cpu().numpy())


def choose_layer(model: nn.Module, size_px: int, wanted: str | None, whose: str) -> str:
    """The layer whose activations are weighed.

    Args:
        model: in evaluation mode.
        size_px: side of its images.
        wanted: name of a module; None for the last one whose output is a map: the last stage, or an
            earlier one where images are so small that nothing but a point is left of them there.
        whose: what messages call the model.

    Raises:
        UserError: there is no such layer, or its output is no map.
    """
    shapes = _output_shapes(model, size_px)
    if wanted is not None:
        if wanted not in shapes:
            raise UserError(
                f"--layer {wanted}: {whose} has no such layer{suggestion(wanted, shapes)}"
            )
        if not _is_map(shapes[wanted]):
            maps = [name for name, shape in shapes.items() if _is_map(shape)] or ["none"]
            raise UserError(
                f"--layer {wanted}: its output in {whose} is {shapes[wanted] or 'no tensor'}, no "
                f"map [images, channels, height, width]; the last one is of {maps[-1]}"
            )
        return wanted
    for name, shape in reversed(shapes.items()):
        if _is_map(shape):
            return name
        # Tokens, or channels that come last: whatever map came before was not the last stage's.
        if len(shape) == 3 or (len(shape) == 4 and shape[2] != shape[3]):
            break
    raise UserError(
        f"{whose} does not end in maps [images, channels, height, width], as convolutional "
        "networks do; name one of its layers that gives such maps by --layer NAME"
    )


def with_heat(image: Image.Image, heat: npt.NDArray[np.float32]) -> Image.Image:
    """An RGB image with a map laid over it, dark where it is 0 and bright where it is 1.

    Args:
        image: enlarged where it is small.
        heat: float32 [h, w], one of `Maps.heat`.
    """
    from torchcam.utils import overlay_mask

    image = enlarged(image)
    return overlay_mask(image, Image.fromarray(heat), _COLOURS, alpha=_PHOTOGRAPH)


def enlarged(image: Image.Image) -> Image.Image:
    """An image by a whole factor, with sharp pixels, so that its sides have 224 at least."""
    factor = -(-_MIN_SIDE_PX // min(image.size))
    size = (factor * image.width, factor * image.height)
    return image if factor == 1 else image.resize(size, Image.Resampling.NEAREST)


def check_installed() -> None:
    """Find out before the work begins.

    Raises:
        UserError: torchcam is not installed.
    """
    try:
        import torchcam.methods  # noqa: F401
    except ImportError as error:
        raise UserError(
            "class activation maps are made by torchcam, which is not installed; with Python 3.11 "
            "or later, run: pip install 'torchcam>=0.5'"
        ) from error


def _is_map(shape: Sequence[int]) -> bool:
    """Images are square, so maps of channels that come second are too."""
    return len(shape) == 4 and shape[2] == shape[3] > 1


def _output_shapes(model: nn.Module, size_px: int) -> dict[str, tuple[int, ...]]:
    """The output's shape of each module but the model itself, in the order in which they end.

    It is () for what gives no tensor.
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, output: object) -> None:
        shapes.pop(name, None)
        shapes[name] = tuple(output.shape) if isinstance(output, Tensor) else ()

    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: note(name, output))
        for name, module in model.named_modules()
        if name
    ]
    device = next(model.parameters()).device
    try:
        with torch.no_grad():
            model(torch.zeros(1, 3, size_px, size_px, device=device))
    finally:
        for handle in handles:
            handle.remove()
    return shapes
