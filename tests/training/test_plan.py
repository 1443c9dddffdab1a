"""What --dry-run says: the batches, and memory and hours that another count agrees with."""

import re

import pytest
from conftest import ROOT

from dali_rsb.config import load_config
from dali_rsb.errors import UserError
from dali_rsb.training.plan import describe_plan

A3 = ROOT / "configs" / "a3.yaml"


def test_64_devices_are_planned_without_one():
    text = describe_plan(load_config(A3, []), 64, img_per_s=1000)
    assert "2048 = 32 per device x 64 device(s) x 1 accumulation; 625 updates an epoch" in text
    hours = 62_500 * 2048 / 64_000 / 3600
    assert f"about {hours:.2f} h of training at 1,000 img/s a device (as given)" in text
    # ResNet-50 has 25.56 million weights; weights, gradients, LAMB's two moments.
    assert float(re.search(r"GiB a device: ([0-9.]+) of weights", text)[1]) == pytest.approx(
        25.557e6 * 4 * 4 / 2**30, abs=0.006
    )
    # Convolutions' inputs and outputs of batch norm and ReLU: fvcore counts 11.1 million
    # activations of convolutions at 224 px, that is 5.7 million at 160 px.
    image = float(re.search(r"([0-9.]+) MiB of activations an image", text)[1])
    assert image == pytest.approx(2 * 5.67e6 * 2 / 2**20, rel=0.1)


def test_the_assumed_speed_follows_the_model():
    rates = [
        int(re.search(r"at ([0-9,]+) img/s", text)[1].replace(",", ""))
        for text in (
            describe_plan(load_config(A3, [f"augment.size={size}"]), 8) for size in (160, 320)
        )
    ]
    assert rates[0] / rates[1] == pytest.approx(4, rel=0.02)


@pytest.mark.parametrize(
    ("arguments", "fix"),
    [((0,), "at least 1"), ((3,), "optimizer.batch_size=2046"), ((8, -1.0), "above 0")],
)
def test_a_plan_that_cannot_be_is_one_line(arguments, fix):
    with pytest.raises(UserError, match=fix):
        describe_plan(load_config(A3, []), *arguments)


def test_hours_of_a_slow_device():
    text = describe_plan(load_config(A3, []), 64, img_per_s=1)
    assert f"about {62_500 * 2048 / 64 / 3600:.2f} h" in text
