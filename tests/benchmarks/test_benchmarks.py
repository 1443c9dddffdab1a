"""The benchmarks: what their images are, that sections are counted and timed right, the results."""

import dataclasses
import functools
import itertools
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
import warnings
from pathlib import Path

import pytest
from conftest import SERVER
from PIL import Image

# What imports torch is imported in the tests: child processes import this file.
from benchmarks import imagenet_like, report
from dali_rsb.errors import UserError

ROOT = Path(__file__).parents[2]
NUM_IMAGES = 60


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("imagenet_like") / "images"
    imagenet_like.write_imagenet_like(root, NUM_IMAGES, num_classes=3, seed=0)
    return root


@pytest.fixture(scope="module")
def settings(images):
    from benchmarks import peers

    return peers.LoaderTask(images, 8, 32, "rand-m6-mstd0.5-inc1", num_threads=1)


def test_images_have_the_statistics_of_imagenet(images):
    files = sorted(images.glob("*/*.JPEG"))
    opened = [Image.open(file) for file in files]
    manifest = json.loads((images / imagenet_like.MANIFEST).read_text())
    mean_bytes = sum(file.stat().st_size for file in files) / NUM_IMAGES
    assert mean_bytes == pytest.approx(imagenet_like.MEAN_FILE_BYTES, rel=0.05)
    assert manifest["mean_bytes"] == round(mean_bytes)
    sizes = [image.size for image in opened]
    assert max(set(sizes), key=sizes.count) == (500, 375)
    assert {(375, 500), (500, 333), (333, 500), (500, 500)} < set(sizes)
    assert max(max(size) for size in sizes) > 1500
    modes = [image.mode for image in opened]
    assert modes.count("L") >= 1
    assert modes.count("CMYK") == 1
    assert [image.format for image in opened].count("PNG") == 1
    chroma = [image.layer[0][1:3] for image in opened if image.format == "JPEG"]
    assert chroma.count((2, 2)) > NUM_IMAGES / 2


def test_images_lie_in_imagenets_layout(images, tmp_path):
    from dali_rsb.dataset import open_index

    index = open_index(images, tmp_path, progress=False)
    assert len(index) == NUM_IMAGES
    assert index.classes == ("n00000000", "n00000001", "n00000002")
    assert [index.labels.tolist().count(label) for label in range(3)] == [20, 20, 20]


def test_images_are_the_same_for_a_seed_and_others_for_another(images, tmp_path):
    manifest = json.loads((images / imagenet_like.MANIFEST).read_text())
    plans = imagenet_like.plan_images(NUM_IMAGES, 3, seed=0)
    for plan in plans[::20]:
        assert imagenet_like.encode(plan) == (images / plan.name).read_bytes()
    again = imagenet_like.write_imagenet_like(tmp_path / "again", 12, 3, seed=0)
    other = imagenet_like.write_imagenet_like(tmp_path / "other", 12, 3, seed=1)
    assert imagenet_like.write_imagenet_like(tmp_path / "once_more", 12, 3, seed=0) == again
    assert len({manifest["sha256"], again["sha256"], other["sha256"]}) == 3


def test_the_manifest_has_the_checksum_that_the_benchmark_finds(images):
    from benchmarks.loader import read_dataset

    manifest = json.loads((images / imagenet_like.MANIFEST).read_text())
    dataset = read_dataset(images)
    assert dataset == {
        "images": NUM_IMAGES,
        "mean_bytes": manifest["mean_bytes"],
        "sha256": manifest["sha256"],
    }


def test_a_folder_with_something_in_it_is_not_overwritten(images):
    with pytest.raises(UserError, match="not an empty folder"):
        imagenet_like.write_imagenet_like(images, NUM_IMAGES)


@pytest.mark.parametrize("policy", ["rand-m6-mstd0.5-inc1", None])
@pytest.mark.parametrize("candidate", ["ours", "timm", "DALI", "DALI n=1", "torchvision"])
def test_every_candidate_delivers_whole_batches_across_epochs(settings, candidate, policy):
    from benchmarks.loader import our_loader
    from benchmarks.peers import dali_loader, timm_loader, torchvision_loader

    start = {
        "ours": our_loader,
        "timm": timm_loader,
        "DALI": dali_loader,
        "DALI n=1": functools.partial(dali_loader, num_operations=1),
        "torchvision": torchvision_loader,
    }[candidate]
    with warnings.catch_warnings(record=True) as shown:
        batches = start(dataclasses.replace(settings, randaugment=policy))
    assert not [one for one in shown if "nvidia.dali" in str(one.message)]
    num_epoch_batches = NUM_IMAGES // settings.batch
    assert list(itertools.islice(batches, num_epoch_batches + 2)) == [8] * (num_epoch_batches + 2)


def test_dalis_warnings_of_its_own_operators_are_left_out_and_no_others():
    from benchmarks.peers import without_dalis_own_deprecations

    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with without_dalis_own_deprecations(), warnings.catch_warnings():
            warnings.simplefilter("always")  # as DALI does, whatever the filters of others
            for name in ("filter", "equalize", "decoders.image"):
                text = f"WARNING: `nvidia.dali.fn.experimental.{name}` is now deprecated. Use it."
                warnings.warn(text, DeprecationWarning, stacklevel=1)
            warnings.warn("WARNING: something else", DeprecationWarning, stacklevel=1)
    told = [str(one.message) for one in shown]
    assert len(told) == 2
    assert "decoders.image" in told[0]


@pytest.mark.parametrize("share_raw", [0.0, 0.5])
def test_ffcv_delivers_whole_batches(settings, share_raw):
    pytest.importorskip("ffcv")
    from benchmarks.peers import ffcv_loader

    batches = ffcv_loader(dataclasses.replace(settings, randaugment=None), share_raw)
    assert list(itertools.islice(batches, 9)) == [8] * 9


def test_ffcv_may_be_missing(settings, monkeypatch):
    from benchmarks.peers import ffcv_loader

    monkeypatch.setitem(sys.modules, "ffcv.fields", None)
    with pytest.raises(report.NotInstalledError):
        next(ffcv_loader(settings))


def test_dalis_stock_graph_delivers_normalised_batches(settings):
    from benchmarks.peers import dali_stock_loader

    assert list(itertools.islice(dali_stock_loader(settings), 9)) == [8] * 9


def test_a_candidate_with_other_images_is_caught(settings):
    import torch

    from benchmarks.peers import count_images

    floats = torch.zeros((8, 3, 32, 32))
    assert next(count_images([floats], settings, is_normalised=True)) == 8
    for shape, dtype in (
        ((8, 32, 32, 3), torch.float32),
        ((8, 32, 31, 3), torch.uint8),
        ((7, 3, 32, 32), torch.uint8),
    ):
        with pytest.raises(AssertionError):
            next(count_images([torch.zeros(shape, dtype=dtype)], settings))


@pytest.mark.parametrize("stage", ["read", "decode"])
@pytest.mark.parametrize("decode_mode", ["roi", "full"])
def test_stages_deliver_whole_batches(settings, stage, decode_mode):
    from benchmarks.loader import our_stage

    assert list(itertools.islice(our_stage(settings, stage, decode_mode), 9)) == [8] * 9


@pytest.fixture
def _quick_children(monkeypatch):
    """Candidates begin in children of the tests' server, not in interpreters of their own."""
    of_python = multiprocessing.get_context
    monkeypatch.setattr(
        multiprocessing,
        "get_context",
        lambda method: SERVER if method == "spawn" else of_python(method),
    )


def _sleeping_batches(seconds=0.02, batch=4):
    while True:
        time.sleep(seconds)
        yield batch


def _busy_batches(seconds=0.05):
    while True:
        end_s = time.process_time() + seconds
        while time.process_time() < end_s:
            pass
        yield 1


def _not_there():
    raise report.NotInstalledError("it is not installed")


def _fails():
    raise ValueError("broken")


def test_a_section_counts_what_arrives_after_the_warm_up():
    taken = []
    batches = (taken.append(number) or 4 for number in itertools.count())
    section = report.time_section(batches, report.Work(0, 5, num_warmup_batches=3, round_to=2))
    assert section.num_batches == 6
    assert section.num_images == 24
    assert len(taken) == 9


def test_a_section_lasts_as_long_as_asked():
    section = report.time_section(_sleeping_batches(), report.Work(0.2, 1, 0))
    assert 0.2 <= section.wall_s < 2
    assert section.img_per_s == pytest.approx(section.num_images / section.wall_s)
    assert section.cpu_s < 0.1  # asleep


def test_cpu_time_includes_living_children():
    busy = report.time_section(_busy_batches(), report.Work(0, 6, 0))
    assert 0.25 < busy.cpu_s < 1
    before_s = report.tree_cpu_s(os.getpid())
    context = multiprocessing.get_context("fork")
    child = context.Process(target=lambda: list(itertools.islice(_busy_batches(), 100)))
    child.start()
    time.sleep(1)
    gained_s = report.tree_cpu_s(os.getpid()) - before_s
    child.kill()
    child.join()
    assert gained_s > 0.15


def test_rounds_alternate_and_say_who_is_left_out():
    candidates = {
        "slow": functools.partial(_sleeping_batches, 0.05),
        "missing": _not_there,
        "fast": functools.partial(_sleeping_batches, 0.005),
    }
    lines = []
    result = report.measure(
        candidates, report.Work(0, 4, 1), num_rounds=2, num_cpus=1, progress=lines.append
    )
    sections = result.sections
    assert result.left_out == {"missing": "it is not installed"}
    measured = [line.split(":")[0].split()[-1] for line in lines if line.startswith("round")]
    assert measured == ["slow", "fast", "fast", "slow"]
    assert [len(runs) for runs in sections.values()] == [2, 2]
    assert all(section.num_images == 16 for runs in sections.values() for section in runs)
    assert report.ratios(sections["fast"], sections["slow"]).median > 2


def _crashes(after):
    for _ in range(after):
        yield 4
    os.kill(os.getpid(), signal.SIGSEGV)
    yield 4


@pytest.mark.usefixtures("_quick_children")
@pytest.mark.parametrize("after", [0, 3])
def test_a_candidate_that_crashes_is_a_line_and_the_others_go_on(after):
    candidates = {
        "crashing": functools.partial(_crashes, after),
        "good": functools.partial(_sleeping_batches, 0.01),
    }
    lines = []
    work = report.Work(0, 2, 1)
    measured = report.measure(candidates, work, 2, 1, lines.append, keep_going=True)
    assert measured.left_out == {"crashing": "its process died by SIGSEGV"}
    assert "crashing: left out, its process died by SIGSEGV" in lines
    assert {name: len(runs) for name, runs in measured.sections.items()} == {"good": 2}


@pytest.mark.usefixtures("_quick_children")
def test_a_table_says_which_candidate_crashed():
    from benchmarks.loader import Group, group_tables, measure_group

    group = Group(
        {
            "decode full, load 1": functools.partial(_crashes, 0),
            "decode host": functools.partial(_sleeping_batches, 0.01),
        },
        increments=(("decode full, load 1", "decode host"),),
    )
    result = measure_group(group, report.Work(0, 2, 1), 1, 1, print)
    table = group_tables(result)
    assert "decode full, load 1: left out, its process died by SIGSEGV" in table
    assert "| decode host " in table
    alone = Group({"decode full": functools.partial(_crashes, 0)})
    with pytest.raises(UserError, match="none of decode full could be measured"):
        measure_group(alone, report.Work(0, 2, 1), 1, 1, print)


@pytest.mark.usefixtures("_quick_children")
def test_a_candidate_that_fails_is_named():
    with pytest.raises(RuntimeError, match="'broken one'"):
        report.measure({"broken one": _fails}, report.Work(0, 1, 0), 1, 1, print)


def _parts():
    def ready():
        yield from itertools.repeat(report.Delivery(2, waited_s=0.25))

    return report.Parts({"one": ready, "two": functools.partial(_sleeping_batches, 0.01)}, {"a": 1})


def _mistaken():
    raise UserError("give another one")


@pytest.mark.usefixtures("_quick_children")
def test_parts_of_a_candidate_are_measured_each_for_itself():
    lines = []
    measured = report.measure(
        {"x": _parts, "y": functools.partial(_sleeping_batches, 0.01)},
        report.Work(0, 4, 1),
        num_rounds=2,
        num_cpus=1,
        progress=lines.append,
    )
    assert lines[:2] == ["starting 1 of 2: x", "starting 2 of 2: y"]
    order = [line.split("  ")[1].split(":")[0] for line in lines[2:]]
    assert order == ["x, one", "x, two", "y", "y", "x, two", "x, one"]
    assert measured.facts["x"] == {"a": 1}
    (first, second) = measured.sections["x, one"]
    assert first.num_images == second.num_images == 8
    assert first.waited_s == 1.0
    assert measured.sections["x, two"][0].waited_s is None
    as_json = report.sections_as_json(measured.sections)
    assert as_json["x, one"]["data_wait_percent"]["median"] > 0
    assert "data_wait_percent" not in as_json["y"]


@pytest.mark.usefixtures("_quick_children")
def test_a_failing_candidate_can_be_left_out_but_not_a_mistake_of_the_users():
    candidates = {"broken": _fails, "good": functools.partial(_sleeping_batches, 0.01)}
    measured = report.measure(candidates, report.Work(0, 1, 0), 1, 1, print, keep_going=True)
    assert list(measured.sections) == ["good"]
    assert "failed" in measured.left_out["broken"]
    with pytest.raises(UserError, match="give another one"):
        report.measure({"x": _mistaken}, report.Work(0, 1, 0), 1, 1, print, keep_going=True)


def _terminate_after(lines, number):
    """A progress that sends SIGTERM to this process with a certain line."""

    def progress(line):
        lines.append(line)
        if len(lines) == number:
            os.kill(os.getpid(), signal.SIGTERM)

    return progress


@pytest.fixture
def _default_sigterm():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("_default_sigterm", "_quick_children")
def test_what_is_complete_when_time_is_up_is_kept():
    candidates = {name: functools.partial(_sleeping_batches, 0.005) for name in "ab"}
    lines = []
    work, progress = report.Work(0, 2, 1), _terminate_after(lines, 7)
    measured = report.measure(candidates, work, 9, 1, progress)
    assert lines[-1] == "stopped: 2 of 9 rounds are complete"
    assert measured.num_rounds == 2
    assert [len(runs) for runs in measured.sections.values()] == [2, 2]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN  # a second one does no harm
    with pytest.raises(UserError, match="before the first round"):
        report.measure(candidates, work, 9, 1, _terminate_after([], 3))


def test_summaries_and_pairwise_ratios():
    assert report.summarize([9.0, 1.0, 2.0]) == report.Summary(2.0, 1.0, 9.0, (9.0, 1.0, 2.0))
    ours = [report.Section(1, 1, number, 1) for number in (100, 300)]
    theirs = [report.Section(1, 1, number, 1) for number in (50, 100)]
    assert report.ratios(ours, theirs).runs == (2.0, 3.0)


@pytest.mark.usefixtures("_quick_children")
def test_the_command_writes_its_results(images, tmp_path, capsys):
    """Repeated augmentation needs 256 images; links to the same files serve."""
    from benchmarks.loader import main

    root = tmp_path / "linked"
    for file in images.glob("*/*.JPEG"):
        for copy in range(5):
            link = root / file.parent.name / f"{copy}_{file.name}"
            link.parent.mkdir(parents=True, exist_ok=True)
            os.link(file, link)
    output = tmp_path / "results" / "loader.json"
    options = {"batch": 16, "size": 32, "threads": 1, "repeats": 2, "seconds": 0, "batches": 2}
    options |= {"only": "repeated_augmentation", "output": output}
    main([str(root), *(f"--{name}={value}" for name, value in options.items())])
    assert "shared / roi" in capsys.readouterr().out
    written = json.loads(output.read_text())
    assert written["benchmark"] == "loader"
    assert "benchmarks.loader" in written["command"]
    assert written["dataset"]["images"] == 5 * NUM_IMAGES
    assert len(written["dataset"]["sha256"]) == 64
    assert written["machine"]["cpus_usable"] >= 1
    assert written["machine"]["cpu"]
    packages = {"python", "torch", "nvidia-dali-cuda120", "pillow", "commit"}
    assert packages <= set(written["versions"])
    group = written["groups"]["repeated_augmentation"]
    assert list(group["candidates"]) == ["shared", "roi", "full"]
    for measured in group["candidates"].values():
        assert measured["num_images"] == [32, 32]
        rate = measured["img_per_s"]
        assert rate["min"] <= rate["median"] <= rate["max"]
        assert len(rate["runs"]) == 2
    assert group["ratios"]["shared / roi"]["target"] == 1.3
    assert not any(path.name.startswith(".") for path in root.iterdir())


def test_kernels_that_do_not_run_are_left_out_and_no_mistake(settings):
    from benchmarks.loader import loader_group, our_loader

    on_a_gpu = loader_group(dataclasses.replace(settings, device="cuda"))
    assert {pair.ours for pair in on_a_gpu.comparisons} >= {"dali_rsb", "dali_rsb kernels"}
    with pytest.raises(report.NotInstalledError, match="it needs a GPU"):
        next(our_loader(settings, randaugment_by="triton"))


def test_every_pair_and_stage_is_among_the_candidates(settings):
    from benchmarks.loader import loader_group, stages_group

    group = loader_group(settings)
    named = {name for pair in group.comparisons for name in (pair.ours, pair.theirs)}
    assert named == set(group.candidates)
    targets = {pair.theirs: pair.target for pair in group.comparisons if pair.target}
    assert targets == {"timm": 1.35, "DALI rand_augment": 1.25}
    stages = stages_group(settings)
    assert {name for pair in stages.increments for name in pair} <= set(stages.candidates)
    plain = loader_group(dataclasses.replace(settings, randaugment=None))
    assert set(plain.candidates) == {
        "dali_rsb plain",
        "timm plain",
        "DALI plain",
        "DALI stock plain",
        "torchvision plain",
        "FFCV plain",
        "FFCV half raw plain",
    }


def _sections(*rates, cpu_ms_per_img=1.0, wait_share=None):
    """Sections of a second with these images/s."""
    return [
        report.Section(1.0, rate * cpu_ms_per_img / 1000, rate, 1, wait_share) for rate in rates
    ]


@pytest.mark.parametrize(
    ("loader", "model", "cpu_ms", "limit", "advice"),
    [
        (500, 1000, (1.0, 1.0), "loader", "data.threads"),
        (1000, 500, (1.0, 1.0), "model", "nothing to do for the loader"),
        (1000, 500, (2.0, 3.0), "CPU", "more cores"),  # 2 cores: 400 img/s for both
        (1000, 500, (0.5, 3.5), "model", "nothing to do"),  # 2 cores: 500 img/s
    ],
)
def test_the_triple_says_what_limits(loader, model, cpu_ms, limit, advice):
    from benchmarks.triple import Triple

    sections = {
        "x, loader alone": _sections(loader, loader, cpu_ms_per_img=cpu_ms[0]),
        "x, model alone": _sections(model, model, cpu_ms_per_img=cpu_ms[1]),
        "x, together": _sections(380, 390, wait_share=0.02),
    }
    triple = Triple.of(sections, "x", num_cpus=2)
    assert triple.limit == limit
    assert advice in triple.verdict()
    assert triple.share_of_slower.runs == pytest.approx((0.76, 0.78))
    assert triple.cpu_bound.median == pytest.approx(2000 / sum(cpu_ms))
    bound = min(loader, model, 2000 / sum(cpu_ms))
    assert triple.share_of_bound.runs == pytest.approx((380 / bound, 390 / bound), rel=1e-3)
    assert triple.data_wait_percent.median == pytest.approx(2.0)
    assert json.loads(json.dumps(triple.as_json()))["limit"] == limit


@pytest.mark.parametrize(
    ("loader", "together", "reason"),
    [
        ((500, 500), (1290, 1320), "together they reached 261 % of the slower"),
        ((500, 300), (280, 290), "loader alone, the rounds went from 300 to 500 img/s"),
        ((500, 510), (300, 490), "together, the rounds went from 300 to 490 img/s"),
    ],
)
def test_the_triple_of_a_busy_machine_has_no_verdict(loader, together, reason):
    from benchmarks.triple import Triple

    sections = {
        "x, loader alone": _sections(*loader),
        "x, model alone": _sections(2000, 2000),
        "x, together": _sections(*together, wait_share=0.02),
    }
    triple = Triple.of(sections, "x", num_cpus=16)
    assert "no verdict, the machine was busy" in triple.verdict()
    assert reason in triple.verdict()
    assert triple.as_json()["limit"] is None


def test_parts_of_an_update_are_differences():
    from benchmarks.step import part_times_ms

    # Of 100 images: an update 100 ms, mixing 10 ms, forward 20 ms, both passes 70 ms.
    rates = {"update": 1000, "mix": 10_000, "forward": 5000, "forward and backward": 100 / 0.07}
    sections = {f"x, {part}": _sections(rate) for part, rate in rates.items()}
    times = {part: values[0] for part, values in part_times_ms(sections, "x", 100).items()}
    expected = {"update": 100, "mix": 10, "forward": 20, "backward": 50, "optimizer": 20}
    assert times == pytest.approx(expected)


def test_settings_to_vary_are_combined():
    from benchmarks.step import variants

    found = variants(None, ["a.b=1,2", "c.d=x,y"], lambda more: more)
    assert list(found.values()) == [
        ("a.b=1", "c.d=x"),
        ("a.b=1", "c.d=y"),
        ("a.b=2", "c.d=x"),
        ("a.b=2", "c.d=y"),
    ]
    assert list(variants("base", [], None).values()) == ["base"]
    with pytest.raises(UserError, match="--vary run"):
        variants(None, ["run.compile"], None)


@pytest.fixture
def tiny_config(digits):
    """The quickstart with batches of 8, and one thread for PyTorch."""
    import torch

    from dali_rsb.config import load_config

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield load_config(ROOT / "configs/quickstart.yaml", [f"data.digits={digits}", *TINY])
    torch.set_num_threads(threads)


TINY = [
    "run.device=cpu",
    "run.batch_per_device=8",
    "optimizer.batch_size=16",
    "augment.size=16",
    "evaluation.size=16",
    "evaluation.batch_per_device=8",
    "run.warm_up=false",
]


@pytest.mark.parametrize("candidate", ["ours", "timm", "plain"])
def test_every_step_does_whole_updates_and_its_parts(tiny_config, candidate):
    from benchmarks import step

    start = {"ours": step.start_ours, "timm": step.start_timm, "plain": step.start_plain}[candidate]
    parts = start(tiny_config)
    assert set(parts.runs) == {step.UPDATE, step.MIX, step.FORWARD, step.BACKWARD}
    for run in parts.runs.values():
        batches = run()
        assert [next(batches), next(batches)] == [16, 16]
    assert parts.facts["accumulation"] == 2
    assert parts.facts["dtype"] == "float32"


def test_timms_step_trains(tiny_config):
    """The peer must do the work that it is measured for: weights and average move."""
    import torch

    from benchmarks.train_steps import TimmStep, synthetic_batches

    torch.manual_seed(0)
    step = TimmStep(tiny_config, torch.device("cpu"))
    step.optimizer.param_groups[1]["lr"] = 0.1
    before = step.model.fc.weight.detach().clone()
    batches = itertools.cycle(synthetic_batches(8, 16, 10, None, torch.device("cpu")))
    for _ in range(2):
        step.update(batches)
    weights, average = step.model.fc.weight, step.ema.module.fc.weight
    assert not torch.equal(weights, before)
    assert not torch.equal(average, weights)
    assert step.mixup is not None


@pytest.mark.parametrize("candidate", ["ours", "timm"])
def test_training_parts_deliver_whole_updates(tiny_config, candidate):
    from benchmarks import train
    from benchmarks.triple import LOADER, MODEL, TOGETHER

    parts = (train.start_ours if candidate == "ours" else train.start_timm)(tiny_config)
    for part in (LOADER, MODEL, LOADER):  # a part may come again
        batches = parts.runs[part]()
        assert [next(batches), next(batches)] == [16, 16]
        batches.close()
    batches = parts.runs[TOGETHER]()
    delivery = next(batches)
    batches.close()
    assert delivery.num_images == 16
    assert delivery.waited_s > 0
    if candidate == "ours":
        assert parts.facts["dataset"]["images"] > 1000
        assert parts.facts["start_up_s"] > 0
        evaluated = parts.runs[train.EVALUATION]()
        assert next(evaluated) == 16
        evaluated.close()


@pytest.mark.usefixtures("_quick_children")
def test_the_train_command_writes_rates_that_the_budget_reads(
    digits, tmp_path, capsys, monkeypatch
):
    from benchmarks import budget, train

    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of the child: threads that wait in turns take long
    output = tmp_path / "train.json"
    config, overrides = str(ROOT / "configs/quickstart.yaml"), [f"data.digits={digits}", *TINY]
    options = {"rounds": 1, "seconds": 0, "updates": 1, "output": output}
    train.main(
        [config, *overrides, "--no-timm", *(f"--{name}={value}" for name, value in options.items())]
    )
    (verdict,) = re.findall("dali_rsb: (limited by|no verdict)", capsys.readouterr().out)
    written = json.loads(output.read_text())
    assert written["benchmark"] == "train"
    triple = written["triples"]["dali_rsb"]
    # A busy machine gives no verdict.
    assert (triple["limit"] in ("loader", "model", "CPU")) == (verdict == "limited by")
    rate = written["candidates"]["dali_rsb, together"]["img_per_s"]["median"]
    assert triple["together"]["median"] == rate > 0
    budget.main([config, *overrides, "--rates", str(output), "--images=1437", "--val-images=360"])
    assert "measured [1]" in capsys.readouterr().out


def test_training_without_images_is_a_mistake():
    from benchmarks import train

    with pytest.raises(UserError, match=r"data\.train"):
        train.main([str(ROOT / "configs/a3.yaml"), "--device=cpu"])


def test_every_decoding_stage_is_among_the_candidates(settings):
    from benchmarks.decode import hardware_group, stages_group

    group = stages_group(settings)
    assert {name for pair in group.increments for name in pair} <= set(group.candidates)
    assert {name for pair in group.comparisons for name in (pair.ours, pair.theirs)} <= set(
        group.candidates
    )
    assert set(hardware_group(settings, [0.0, 0.65]).candidates) >= {
        f"{stage} {mode}, load {load}"
        for stage in ("decode", "RandAugment")
        for mode in ("roi", "full")
        for load in ("0", "0.65")
    }


@pytest.mark.parametrize(
    "arguments", [[], ["out", "--device", "abacus"], ["out", "--fast"], ["out", "--seconds", "x"]]
)
def test_the_script_says_how_it_is_used(tmp_path, arguments):
    result = subprocess.run(
        ["bash", str(ROOT / "benchmarks/gpu.sh"), *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert "usage: benchmarks/gpu.sh OUT" in result.stderr
    assert list(tmp_path.iterdir()) == []


def _run_script(folder, *arguments, env=None):
    script = ["bash", str(ROOT / "benchmarks/gpu.sh"), "out", "--device", "cpu", "--quick"]
    return subprocess.run(
        [*script, *arguments], cwd=folder, capture_output=True, text=True, check=False, env=env
    )


def test_the_scripts_time_limits_sum_to_less_than_25_minutes():
    script = ROOT / "benchmarks/gpu.sh"
    printed = subprocess.run(
        ["bash", str(script), "--limits"], capture_output=True, text=True, check=True
    ).stdout
    limits = {part: int(limit) for part, limit in map(str.split, printed.splitlines())}
    assert sum(limits.values()) < 25 * 60
    assert limits["kernels"] == 240
    assert list(limits)[:4] == ["packages", "dali_cpu", "dali_gpu", "jpeg_engine"]
    assert list(limits)[4:7] == ["decode_gpu_host", "decode_gpu_full", "decode_gpu_roi"]
    # Each is run, and what is run is one of them.
    text = script.read_text()
    run = re.findall(r"^\s*(?:run|benchmark) (\w+) ", text, re.MULTILINE)
    (probes,) = re.findall(r'^probes="([^"]+)"', text, re.MULTILINE)
    assert {*run, *probes.split()} == set(limits)


def test_a_part_that_crashes_is_a_line_and_the_others_go_on(tmp_path):
    """A stand-in for python3 dies by SIGSEGV in one part, as a decoder might."""
    stand_in = tmp_path / "bin/python3"
    stand_in.parent.mkdir()
    stand_in.write_text(
        f"""#!/bin/sh
case "$*" in
*benchmarks.mix*) kill -SEGV $$ ;;
*benchmarks.loss*) exit 0 ;;
*) exec {sys.executable} "$@" ;;
esac
"""
    )
    stand_in.chmod(0o755)
    path = f"{stand_in.parent}{os.pathsep}{os.environ['PATH']}"
    result = _run_script(tmp_path, "--only", "mix,loss", env=os.environ | {"PATH": path})
    assert result.returncode == 1
    summary = (tmp_path / "out/summary.txt").read_text().splitlines()
    assert [line.split()[:2] for line in summary] == [["FAIL", "mix"], ["PASS", "loss"]]
    assert "exit code 139, SIGSEGV" in summary[0]


def test_the_script_bundles_its_results(tmp_path):
    result = _run_script(tmp_path, "--only", "packages")
    assert result.returncode == 0, result.stdout
    with tarfile.open(tmp_path / "out/results.tar.gz") as bundle:
        names = {Path(name).name for name in bundle.getnames()}
    assert names == {"packages_dry_run.json", "packages.log", "summary.txt"}


def test_the_script_runs_the_parts_that_are_asked_for(tmp_path):
    result = _run_script(tmp_path, "--only", "step,abacus")
    assert result.returncode == 2
    assert "--only abacus: there are packages" in result.stderr
    assert list(tmp_path.iterdir()) == []
    result = _run_script(tmp_path, "--only", "budget")  # without the rates it needs, nor images
    assert result.returncode == 0
    summary = (tmp_path / "out/summary.txt").read_text()
    assert summary.split() == ["SKIPPED", "budget", "no", "rates"]
