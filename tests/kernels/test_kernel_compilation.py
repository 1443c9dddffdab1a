"""The kernels of mixing and BCE, compiled ahead for every GPU from V100 to B200, without one.

The kernels of LAMB are compiled in test_lamb_kernel.py.
"""

import itertools

import pytest
import triton
from ptx import CAPABILITIES, compile_ahead

from dali_rsb.kernels import bce_triton, mix_triton

# V100 and T4 have no bfloat16 arithmetic and train in float16.
TARGETS = [
    (capability, dtype)
    for capability, dtype in itertools.product(CAPABILITIES, ("fp16", "bf16", "fp32"))
    if dtype != "bf16" or capability >= 80
]


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


def compile_mix(capability, dtype, mixes, whole):
    group = 8 if whole and dtype != "fp32" else 4
    constants = {
        "MIX": mixes,
        "WHOLE": whole,
        "GROUP": group,
        "BLOCK": mix_triton.BLOCK if whole else mix_triton.CUT_BLOCK,
    }
    signature = {"images": "*u8", "output": f"*{dtype}"}
    drawn = {"partner": "*i64", "pixel_lam": "*fp32", "box": "*i32"}
    if mixes:
        signature |= drawn
    else:
        constants |= dict.fromkeys(drawn)
    signature |= dict.fromkeys(("num_values", "num_groups", "row_values"), "i32")
    signature |= {f"{name}_{c}": "fp32" for name in ("scale", "shift") for c in "rgb"}
    aligned = ["output", "images"] if whole else ["output"]
    return compile_ahead(
        mix_triton._mix_kernel, signature, constants, capability, mix_triton.NUM_WARPS, aligned
    )


def compile_bce(capability, dtype, num_classes, has_threshold, gradient=True):
    block = min(triton.next_power_of_2(num_classes), bce_triton.MAX_BLOCK)
    signature = {"logits": f"*{dtype}", "labels": "*i64", "partner_labels": "*i64", "lams": "*fp32"}
    signature |= {"losses": "*fp32", "gradient": f"*{dtype}"}
    signature |= dict.fromkeys(("row_stride", "num_classes"), "i32")
    signature |= dict.fromkeys(("on", "off", "threshold", "scale"), "fp32")
    constants = {
        "column_stride": 1,  # Triton makes a constant of an argument that is 1
        "THRESHOLD": has_threshold,
        "GRADIENT": gradient,
        "NUM_BLOCKS": triton.cdiv(num_classes, block),
        "BLOCK": block,
    }
    aligned = ["logits", "labels", "partner_labels", "lams", "losses", "gradient"]
    return compile_ahead(
        bce_triton._mixed_bce_kernel,
        signature,
        constants,
        capability,
        bce_triton.NUM_WARPS,
        aligned,
        enable_fp_fusion=False,
    )


@pytest.mark.parametrize(("capability", "dtype"), TARGETS)
def test_mixing(capability, dtype):
    for mixes, whole in itertools.product((False, True), (False, True)):
        compiled = compile_mix(capability, dtype, mixes, whole)
        assert compiled.cubin
        assert compiled.spill_bytes == compiled.stack_bytes == 0
        # Five blocks on an SM, 640 of its 2048 threads: enough loads in flight.
        assert compiled.registers <= 96
        if whole:
            assert "st.global.v4.b32" in compiled.ptx
            assert "ld.global.b8" not in compiled.ptx
            assert ".shared" not in compiled.ptx, "values change threads between load and store"


@pytest.mark.parametrize(("capability", "dtype"), TARGETS)
def test_bce(capability, dtype):
    for num_classes, has_threshold in ((1000, False), (21841, True)):
        compiled = compile_bce(capability, dtype, num_classes, has_threshold)
        assert compiled.cubin
        assert compiled.spill_bytes == compiled.stack_bytes == 0


@pytest.mark.parametrize(("capability", "dtype"), TARGETS)
def test_scaling_of_the_gradient(capability, dtype):
    signature = {"gradient": f"*{dtype}", "factor": "*fp32", "output": f"*{dtype}"}
    signature |= {"numel": "i32", "scale": "fp32"}
    compiled = compile_ahead(
        bce_triton._scale_kernel,
        signature,
        {"BLOCK": bce_triton.MAX_BLOCK},
        capability,
        bce_triton.NUM_WARPS,
        ["gradient", "factor", "output", "numel"],
    )
    assert compiled.spill_bytes == compiled.stack_bytes == 0
    assert "st.global.v4.b32" in compiled.ptx
