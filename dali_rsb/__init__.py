"""dali_rsb: train ResNets with the ResNet Strikes Back recipes on NVIDIA DALI."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dali_rsb.dataset import DatasetIndex, open_index
    from dali_rsb.dropin.dali_loader import DaliLoader
    from dali_rsb.dropin.timm_loader import create_loader
    from dali_rsb.errors import UserError
    from dali_rsb.models import create_model
    from dali_rsb.optim import Lamb, ModelEma

__version__ = "0.1.0"

__all__ = [
    "DaliLoader",
    "DatasetIndex",
    "Lamb",
    "ModelEma",
    "UserError",
    "create_loader",
    "create_model",
    "open_index",
]

# Imported when first asked for: `import dali_rsb` loads neither torch nor DALI.
_MODULES = {
    "DaliLoader": "dali_rsb.dropin.dali_loader",
    "DatasetIndex": "dali_rsb.dataset",
    "Lamb": "dali_rsb.optim",
    "ModelEma": "dali_rsb.optim",
    "UserError": "dali_rsb.errors",
    "create_loader": "dali_rsb.dropin.timm_loader",
    "create_model": "dali_rsb.models",
    "open_index": "dali_rsb.dataset",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
