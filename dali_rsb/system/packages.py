"""Says what to install where DALI is missing, which pip cannot choose by itself."""

from __future__ import annotations

import importlib.util
import sys

from dali_rsb.errors import MissingPackageError

_HOW = (
    "DALI is not installed: pip install 'dali_rsb[cuda12]' (every GPU from V100 on, and machines "
    "without one) or 'dali_rsb[cuda13]' (from Turing on), never both"
)


def require_dali() -> None:
    """Called before anything imports DALI.

    Raises:
        MissingPackageError: DALI is not installed. `python -m dali_rsb.COMMAND`, which imports
            before it can catch anything, ends here, with one line and exit code 2.
    """
    if _is_installed("nvidia.dali"):
        return
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None and spec.name.startswith("dali_rsb."):
        print(f"error: {_HOW}", file=sys.stderr)
        sys.exit(2)
    raise MissingPackageError(_HOW)


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ModuleNotFoundError, ValueError):  # no `nvidia` at all, or taken out of sys.modules
        return False
