"""What only a GPU can show: its graph against the CPU's, and a run in every precision."""

import numpy as np
import pytest
import torch
from conftest import ROOT

from dali_rsb.config import load_config
from dali_rsb.data.graph_runner import GraphRunner
from dali_rsb.data.index import open_index
from dali_rsb.data.randaugment import RandAugmentPolicy
from dali_rsb.data.sampler import BatchLayout
from dali_rsb.data.samples import TrainSamples, TrainTransform
from dali_rsb.distributed import Processes
from dali_rsb.trainer import Trainer
from pipelines import train_pipeline

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("decode_mode", ["roi", "full", "shared"])
@pytest.mark.parametrize("policy", [None, "rand-m6-mstd0.5-inc1"])
def test_the_gpu_graph_gives_the_cpu_graphs_pixels(photo_folder, decode_mode, policy):
    index = open_index(photo_folder, progress=False)
    randaugment = None if policy is None else RandAugmentPolicy.parse(policy)
    transform = TrainTransform(160, randaugment=randaugment, decode_mode=decode_mode)
    samples = TrainSamples(index, BatchLayout(14, 14), transform)
    prepared = samples.prepare(next(samples.specs(0)))

    def pixels(device_id):
        def build():
            return train_pipeline(
                size_px=160,
                batch_size=14,
                num_threads=2,
                device_id=device_id,
                decode_mode=decode_mode,
                randaugment_layers=transform.randaugment_layers,
            )

        runner = GraphRunner(build, prefetch=2)
        runner.submit(prepared.inputs)
        return runner.take().cpu().numpy().astype(int)

    difference = np.abs(pixels(0) - pixels(None))
    # The decoders differ by rounding; operations with thresholds can blow single levels up.
    assert np.median(difference) <= 1
    assert difference.mean() < (1.0 if policy is None else 3.0)


@pytest.mark.parametrize("amp", ["none", "bf16", "fp16"])
def test_a_run_in_every_precision(digits, tmp_path, amp):
    if amp == "bf16" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no bfloat16")
    config = load_config(
        ROOT / "configs" / "quickstart.yaml",
        [f"data.digits={digits}", "run.device=cuda", f"run.amp={amp}", "schedule.epochs=4"],
    )
    trainer = Trainer(config, Processes(torch.device("cuda", 0)))
    trainer.run(tmp_path)
    accuracy = torch.load(tmp_path / "best.pt", weights_only=True)["best_top1"]
    assert accuracy > 60
