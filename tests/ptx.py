"""Triton kernels without a GPU: compiled ahead for one, or run by Triton's interpreter."""

import functools
import inspect
import re
import subprocess
import tempfile
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

# V100, T4, A100, H100, B200 and RTX 50.
CAPABILITIES = (70, 75, 80, 90, 100, 120)


@dataclass(frozen=True)
class Compiled:
    """Machine code of a kernel and what it takes of the GPU, for one thread."""

    cubin: bytes
    ptx: str
    registers: int
    spill_bytes: int  # stored and loaded
    stack_bytes: int


def compile_ahead(
    kernel: JITFunction,
    signature: Mapping[str, str],
    constexprs: Mapping[str, Any],
    capability: int,
    num_warps: int = 4,
    divisible: Iterable[str] = (),
    enable_fp_fusion: bool = True,
) -> Compiled:
    """Compile a kernel for a GPU that need not be there.

    Args:
        signature: Triton's type of each run-time argument by name, such as "*fp16", "i64", "fp32".
        constexprs: value of each constexpr argument.
        capability: of the GPU, such as 90 for sm_90.
        divisible: arguments (pointers, integers) that a launch would find divisible by 16.
        enable_fp_fusion: Triton's option of that name.
    """
    names = kernel.arg_names
    types_by_name = {name: signature.get(name, "constexpr") for name in names}
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in divisible}
    source = ASTSource(kernel, types_by_name, dict(constexprs), attributes)
    target = GPUTarget("cuda", capability, 32)
    options = {"num_warps": num_warps, "enable_fp_fusion": enable_fp_fusion}
    compiled = triton.compile(source, target=target, options=options)
    ptx = compiled.asm["ptx"]
    report = _ptxas_report(ptx, capability, [] if enable_fp_fusion else ["--fmad=false"])
    return Compiled(
        cubin=compiled.asm["cubin"],
        ptx=ptx,
        registers=_sum_of(r"Used (\d+) registers", report),
        spill_bytes=_sum_of(r"(\d+) bytes spill (?:stores|loads)", report),
        stack_bytes=_sum_of(r"(\d+) bytes stack frame", report),
    )


def _ptxas_report(ptx: str, capability: int, options: list[str]) -> str:
    """What `ptxas -v` says of the kernel; Triton runs it too and keeps only the machine code."""
    match = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    assert match is not None
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx, encoding="utf-8")
        command = [_ptxas(capability), "-v", f"--gpu-name={match[1]}", "-lineinfo"]
        result = subprocess.run(
            [*command, *options, str(source), "-o", str(source.with_suffix(".o"))],
            capture_output=True,
            text=True,
            check=True,
        )
    return result.stderr


def _ptxas(capability: int) -> str:
    # Triton 3.4 has one for all GPUs, later versions choose.
    return (get_ptxas(capability) if inspect.signature(get_ptxas).parameters else get_ptxas()).path


def _sum_of(pattern: str, report: str) -> int:
    values = re.findall(pattern, report)
    assert values, f"ptxas says nothing of {pattern!r}: {report}"
    return sum(map(int, values))


# The interpreter knows reductions and scans, but not the library's functions made of them.
_LIBRARY = {
    "sum": lambda x, axis=0: tl.reduce(x, axis, tl.standard._sum_combine),
    "max": lambda x, axis=0: tl.reduce(x, axis, tl.standard._elementwise_max),
    "min": lambda x, axis=0: tl.reduce(x, axis, tl.standard._elementwise_min),
    "cumsum": lambda x, axis=0: tl.associative_scan(x, axis, tl.standard._sum_combine),
}


class _Interpreted(InterpretedFunction):
    def __getitem__(self, grid: Any) -> Callable[..., None]:
        launch = super().__getitem__(grid)

        def run(*arguments: Any, **options: Any) -> None:
            # As on a GPU, what a `where` does not choose may be infinite or undefined.
            with (
                mock.patch.multiple(tl, **_LIBRARY),
                np.errstate(divide="ignore", invalid="ignore"),
            ):
                launch(*arguments, **options)

        return run

    def __call__(self, *arguments: Any) -> Any:
        # A device function. The launch has patched the language, which takes milliseconds.
        return self.rewrite()(*arguments)


def _range(*bounds: Any) -> range:
    # The interpreter's scalars are arrays of one element, which NumPy takes for no index.
    return range(*(int(b.handle.data.item()) if isinstance(b, tl.tensor) else b for b in bounds))


@functools.cache
def interpreted(kernel: JITFunction) -> InterpretedFunction:
    """The kernel as Triton's interpreter runs it on CPU tensors: `interpreted(kernel)[grid](...)`.

    The kernel itself stays as it is. `TRITON_INTERPRET=1`, the official way, acts at import and
    would take the compiler from the whole process.
    """
    function = kernel.fn
    namespace = dict(function.__globals__) | {"range": _range}
    for name in function.__code__.co_names:
        if isinstance(namespace.get(name), JITFunction):  # a device function that it calls
            namespace[name] = interpreted(namespace[name])
    copy = types.FunctionType(function.__code__, namespace, function.__name__)
    copy.__annotations__ = function.__annotations__
    copy.__defaults__ = function.__defaults__
    return _Interpreted(copy)
