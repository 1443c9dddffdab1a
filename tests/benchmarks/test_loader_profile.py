"""The profile of the loader: its stages do what they say, and its parts add up."""

import dataclasses
import itertools
import json
import math
import multiprocessing

import numpy as np
import pytest
from conftest import SERVER

from benchmarks import imagenet_like

BATCH = 8


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    from benchmarks.peers import LoaderTask

    root = tmp_path_factory.mktemp("imagenet_like") / "images"
    imagenet_like.write_imagenet_like(root, 24, num_classes=3, seed=0)
    return LoaderTask(root, BATCH, 32, "rand-m6-mstd0.5-inc1", num_threads=1)


@pytest.fixture(scope="module")
def samples(task):
    from benchmarks.loader import our_samples

    return our_samples(task, "roi", repeats=1)


def _outputs(stage, inputs):
    (output,) = stage.build().run(**stage.fed(inputs))
    return [np.asarray(output[row]) for row in range(len(output))]


def test_each_stage_does_the_steps_so_far(task, samples):
    from benchmarks.loader import endless_specs
    from benchmarks.profile_stages import image_stages
    from dali_rsb.loader.bad_images import BadImages
    from dali_rsb.loader.builders import train_loader
    from dali_rsb.loader.settings import LoaderSettings

    plain = dataclasses.replace(
        samples, transform=dataclasses.replace(samples.transform, randaugment=None)
    )
    spec = next(endless_specs(plain))
    inputs = plain.prepare(spec).inputs
    stages = image_stages(plain, num_threads=1)
    assert not any("RandAugment" in name for name in stages)
    out = {name: _outputs(stage, inputs) for name, stage in stages.items()}
    files = [plain.index.path(i).read_bytes() for i in spec.indices]
    assert [array.tobytes() for array in out["reading"]] == files
    windows = out["decoder: IDCT, upsampling, colour"]
    assert [window.shape[:2] for window in windows] == [tuple(row) for row in inputs["shape"]]
    for window, corner, end in zip(
        windows, out["decoder: set-up"], out["decoder: entropy decoding"], strict=True
    ):
        assert corner.shape == end.shape == (1, 1, 3)
        np.testing.assert_array_equal(end[0, 0], window[-1, -1])
    for window, checked in zip(windows, out["header check"], strict=True):
        np.testing.assert_array_equal(window, checked)
    settings = LoaderSettings.untuned(torch_cpu(), 1)
    loader = train_loader(plain, settings, torch_cpu(), BadImages(plain.index, "raise"))
    batch = next(loader.batches(iter([spec])))
    np.testing.assert_array_equal(np.stack(out["resize"]), batch.images.numpy())
    assert {array.shape for array in out["resize: hand-over"]} == {(32, 32, 3)}


def torch_cpu():
    import torch

    return torch.device("cpu")


def test_branches_are_those_that_were_drawn(samples):
    from benchmarks.loader import endless_specs
    from benchmarks.profile_stages import branch_stages
    from pipelines.operands import Branch

    drawn = [samples.prepare(spec).inputs for spec in itertools.islice(endless_specs(samples), 12)]
    branches = branch_stages(samples, 1, drawn)
    # Two layers, each applied to half of the images.
    assert sum(branches.frequencies.values()) == pytest.approx(1, abs=0.3)
    images = list(np.random.default_rng(0).integers(0, 256, (BATCH, 32, 32, 3), np.uint8))

    def run(branch):
        (output,) = branches.pipeline.run(**branches.fed(branch, images))
        return output.as_array()

    np.testing.assert_array_equal(run(Branch.SKIP), np.stack(images))
    solarized = run(Branch.SOLARIZE)
    assert {255, 0} >= set((solarized ^ np.stack(images)).ravel().tolist())
    assert (solarized != np.stack(images)).any()
    warped = branches.fed(Branch.WARP, images)["randaugment0_matrix"]
    assert not (warped == np.eye(3)).all(axis=(1, 2)).any()


def test_the_command_writes_parts_that_add_up(task, tmp_path, monkeypatch, capsys):
    from benchmarks import loader_profile

    of_python = multiprocessing.get_context
    monkeypatch.setattr(
        multiprocessing,
        "get_context",
        lambda method: SERVER if method == "spawn" else of_python(method),
    )
    monkeypatch.setattr(loader_profile, "LOADER_ROUNDS", 1)
    output = tmp_path / "profile.json"
    options = {"batch": 8, "size": 32, "threads": 1, "rounds": 2, "seconds": 0, "output": output}
    options["randaugment"] = "rand-m6-n1-p1-inc1"  # one layer is built sooner
    loader_profile.main([str(task.data), *(f"--{name}={value}" for name, value in options.items())])
    written = json.loads(output.read_text())
    medians = [step["us"]["median"] for step in written["steps"].values()]
    sums = written["sums"]
    assert sums["all steps"] == pytest.approx(sum(medians), abs=0.1)
    whole = 1e3 * written["loader"]["1 thread"]["cpu_ms_per_img"]["median"]
    rest = sums["queue, taking, the rest"]
    assert sums["all steps"] + rest == pytest.approx(whole, abs=0.2)
    steps = list(written["steps"])
    assert steps[:3] == ["Python: draws", "Python: names or bytes", "Python: checks"]
    assert steps[-1] == "RandAugment: kernels"
    assert all(len(step["us"]["runs"]) == 2 for step in written["steps"].values())
    branch = written["branches"]["WARP"]
    expected = branch["us"]["median"] * branch["of_an_image"]
    assert math.isfinite(branch["dali_us"])  # a difference: below 0 on a busy machine
    assert branch["us_of_an_image"] == pytest.approx(expected, rel=0.01, abs=0.02)
    printed = capsys.readouterr().out
    assert "| decoder: entropy decoding" in printed
    assert "| WARP" in printed


def test_the_time_of_a_thread_is_found_by_its_name():
    import threading
    import time

    from benchmarks.profile_threads import cpu_by_thread

    def busy(has_worked, may_end):
        end_s = time.thread_time() + 0.2
        while time.thread_time() < end_s:
            pass
        has_worked.set()
        may_end.wait()  # the time of a thread that has ended is not found

    def batches():
        while True:
            events = threading.Event(), threading.Event()
            thread = threading.Thread(target=busy, args=events, daemon=True)
            thread.start()
            events[0].wait()
            yield 10
            events[1].set()
            thread.join()

    found = cpu_by_thread(batches(), 0.0)
    others = [us for name, us in found.items() if name != "main thread"]
    assert max(others) >= 1.5e4  # of 10 images


def test_a_missing_perf_is_said(monkeypatch, tmp_path):
    from benchmarks.profile_threads import cpu_by_library

    monkeypatch.setenv("PATH", str(tmp_path))
    found = cpu_by_library(itertools.repeat(8), seconds=1)
    assert found == {"left_out": "perf is not installed"}
