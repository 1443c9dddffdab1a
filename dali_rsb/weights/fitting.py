"""Loads weights into a model: all of them, or all but the head; whatever does not fit is named."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from dali_rsb.errors import UserError


def load_exactly(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load weights into a model of the same architecture.

    Raises:
        UserError: names or shapes differ; names the first that does.
    """
    own = module.state_dict()
    for name in [*own, *weights]:
        if name not in weights or name not in own or own[name].shape != weights[name].shape:
            theirs = tuple(weights[name].shape) if name in weights else "absent"
            ours = tuple(own[name].shape) if name in own else "absent"
            raise UserError(
                f"{source} is of another architecture: {name} is {theirs} there and {ours} in the "
                "model; set model.name and model.num_classes to those of the checkpoint"
            )
    module.load_state_dict(weights)
