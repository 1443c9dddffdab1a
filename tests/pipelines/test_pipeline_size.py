"""How many operators a training pipeline for a GPU has: an upper bound, so that none slips in.

DALI runs one GPU operator of a pipeline at a time, each with launches of its own, beside a training
step that takes 25 to 50 ms a batch: their number is what RandAugment costs there. Tracing a
pipeline needs no GPU.
"""

import re
from collections import Counter

import pytest

from pipelines import TrainArguments, train_pipeline

# Operators of the GPU that pass on what they get, without a kernel of their own.
WITHOUT_LAUNCH = (
    "_conditional__Split",
    "_conditional__Merge",
    "Reshape",
    "Reinterpret",
    "Constant",
)
# Of A3's pipeline, with two layers of RandAugment. Fewer are welcome: then lower the bound.
MOST_OF_A_KIND = {
    "_ArithmeticGenericOp": 134,
    "_conditional__Split": 72,
    "Reshape": 22,
    "_conditional__Merge": 20,
    "Cast": 18,
    "Constant": 10,
    "SequenceRearrange": 8,
    "Slice": 6,
    "BrightnessContrast": 6,
    "ColorSpaceConversion": 6,
    "experimental__WarpPerspective": 4,
    "ElementExtract": 4,
    "reductions__Max": 4,
    "reductions__Min": 2,
    "reductions__Sum": 2,
    "reductions__Mean": 2,
    "_TensorSubscript": 2,
    "Reinterpret": 2,
    "Cat": 2,
    "Equalize": 2,
    "Filter": 2,
    "Resize": 1,
}


def gpu_operators(**options):
    """Kinds of the operators that a training pipeline for a GPU runs there, and their numbers."""
    of_a_gpu = {"size_px": 160, "batch_size": 8, "num_threads": 2, "device_id": 0}
    pipeline = train_pipeline(TrainArguments(**of_a_gpu, **options))
    pipeline._build_graph()
    specs = [str(operator.spec) for operator in pipeline._ops]
    return Counter(
        re.match(r"OpSpec for (\w+):", spec).group(1) for spec in specs if "device: gpu" in spec
    )


@pytest.mark.parametrize("decode_mode", ["roi", "full"])
def test_a_pipeline_with_randaugment_has_no_more_operators_than_these(decode_mode):
    found = gpu_operators(randaugment_layers=2, decode_mode=decode_mode)
    too_many = {kind: n for kind, n in found.items() if n > MOST_OF_A_KIND.get(kind, 0)}
    assert not too_many
    assert found.total() <= 331
    assert sum(n for kind, n in found.items() if kind not in WITHOUT_LAUNCH) <= 205


def test_each_layer_of_randaugment_adds_as_many():
    none, one, two = (gpu_operators(randaugment_layers=n).total() for n in range(3))
    assert none == 1  # the resize
    assert 0 < one - none <= 165
    assert two - one == one - none


def test_repeated_augmentation_needs_four_operators_more():
    shared = gpu_operators(randaugment_layers=2, decode_mode="shared").total()
    assert shared <= 331 + 4
