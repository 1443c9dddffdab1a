"""How the Numba kernels are compiled; importing this imports Numba.

Whole numbers in them are int32 and real ones float32 or float64, said each time: a literal would
make them int64, for which there are no vector instructions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(*signature: str) -> Callable[[Callable[..., Any]], Any]:
    """Compile without the interpreter lock; kept in Numba's cache where one is writable.

    Args:
        signature: of a function that Python calls, which is compiled at once. Those that only
            compiled functions call have none.
    """

    def compile_(function: Callable[..., Any]) -> Any:
        options: dict[str, Any] = {"nogil": True, "boundscheck": False, "error_model": "numpy"}
        # Functions that compiled ones alone call need no wrappers, which take time to compile.
        options |= {"no_cfunc_wrapper": True, "no_cpython_wrapper": not signature}
        try:
            return numba.njit(*signature, cache=True, **options)(function)
        except RuntimeError:  # no folder for the cache can be written to
            return numba.njit(*signature, **options)(function)

    return compile_
