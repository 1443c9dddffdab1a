"""Tuning: the search with made-up measurements, the store, what wins over what, and a real run."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from dali_rsb import tune as command
from dali_rsb.config import load_config
from dali_rsb.errors import UserError
from dali_rsb.loader.settings import LoaderSettings, default_settings
from dali_rsb.run.processes import Processes
from dali_rsb.system import cpus
from dali_rsb.training.assembly import build_trainer, device_batch, train_loader, train_samples
from dali_rsb.training.datasets import open_training
from dali_rsb.tuning.search import LoaderRate, Result, Search, Space
from dali_rsb.tuning.settings import resolve_settings, tuning_key
from dali_rsb.tuning.store import Tuned, load_tuned, store_tuned

QUICKSTART = ROOT / "configs" / "quickstart.yaml"
CPU = Processes(torch.device("cpu"))
DEFAULT = LoaderSettings(threads=8)
SPACE = Space(
    decoding=[(mode, load) for mode in ("host", "full") for load in (0.65, 0.0, 0.9, 1.0)],
    threads=[4, 6, 8, 12, 16],
    prefetch=[2, 3, 5],
)


class Machine:
    """A made-up loader: its rate by settings, noise and drift, and a clock that it moves.

    Args:
        rate: images/s by settings.
        busy_cpus: that the loader keeps busy, whatever its settings.
        noise: standard deviation of a measurement, as a share.
        drift: by how much each measurement is slower than the one before, as a share.
    """

    def __init__(self, rate, noise=0.0, drift=0.0, seconds_each=1.5, seed=0, busy_cpus=2.0):
        self.now_s = 100.0
        self.measured = []
        self.told = []
        self._rate, self._noise, self._drift = rate, noise, drift
        self._seconds_each, self._busy_cpus = seconds_each, busy_cpus
        self._draw = np.random.default_rng(seed)

    def measure(self, settings):
        self.now_s += self._seconds_each
        slower = (1 - self._drift) ** len(self.measured)
        self.measured.append(settings)
        rate = self._rate(settings) * slower * (1 + self._noise * self._draw.standard_normal())
        return LoaderRate(rate, 1000 * self._busy_cpus / rate)

    def search(self, seconds=100.0, default=DEFAULT, space=SPACE):
        search = Search(self.measure, lambda: self.now_s, seconds, self._hear)
        return search.run(default, space)

    def _hear(self, settings, rate, after_s):
        self.told.append((settings, after_s))


def _h100(settings):
    """Engines help whole images, up to a share; threads up to 12; prefetch hardly."""
    if settings.decode == "host":
        rate = 8000 - 500 * settings.hw_decoder_load
    else:
        rate = 6000 + 6000 * min(settings.hw_decoder_load, 0.9)
    return rate * min(settings.threads, 12) / 8 * (1.01 if settings.prefetch == 5 else 1)


def test_the_search_finds_what_is_faster():
    machine = Machine(_h100, noise=0.005)
    result = machine.search(seconds=200)
    assert (result.best.decode, result.best.hw_decoder_load) in [("full", 0.9), ("full", 1.0)]
    assert result.best.threads in (12, 16)
    assert result.best.prefetch == 3  # one percent is within the noise
    assert result.gain == pytest.approx(_h100(result.best) / _h100(DEFAULT), rel=0.03)
    assert not result.ran_out_of_time
    assert sum(map(len, result.rates.values())) == len(machine.measured)
    # Whoever waits hears of each measurement, and when in the search it ended.
    assert machine.told == [(s, 1.5 * n) for n, s in enumerate(machine.measured, 1)]


def test_fewer_threads_win_where_they_are_faster():
    result = Machine(lambda settings: 1000 / settings.threads).search(seconds=200)
    assert result.best == LoaderSettings(threads=4)


@pytest.mark.parametrize(("busy_cpus", "threads"), [(2.0, 16), (7.5, 8)])
def test_more_threads_than_cpus_are_tried_where_those_idle(busy_cpus, threads):
    machine = Machine(lambda settings: 1000.0 * settings.threads, busy_cpus=busy_cpus)
    assert machine.search(seconds=200).best.threads == threads
    assert max(settings.threads for settings in machine.measured) == threads
    alone = Machine(lambda settings: 1000.0 * settings.threads, busy_cpus=busy_cpus)
    space = Space(threads=SPACE.threads)
    assert alone.search(seconds=200, space=space).best.threads == threads


def test_within_the_noise_the_defaults_stay():
    changed = 0
    for seed in range(40):
        machine = Machine(lambda settings: 1000.0, noise=0.03, seed=seed)
        result = machine.search(seconds=200)
        changed += result.best != DEFAULT
        assert (result.gain == 1) == (result.best == DEFAULT)
    assert changed <= 1


@pytest.mark.parametrize("drift", [0.01, -0.01])
def test_a_machine_that_grows_slower_or_faster_changes_nothing(drift):
    assert Machine(lambda settings: 1000.0, drift=drift).search(seconds=200).best == DEFAULT


def test_hopeless_settings_are_measured_once():
    def rate(settings):
        return 100 if settings.decode == "full" else 1000

    machine = Machine(rate)
    machine.search(seconds=200)
    counts = [machine.measured.count(s) for s in set(machine.measured) if s.decode == "full"]
    assert counts == [1] * 4


@pytest.mark.parametrize("seconds", [2, 5, 10, 20, 40, 80])
@pytest.mark.parametrize("seconds_each", [0.7, 3.0, 12.0])
def test_the_time_is_kept(seconds, seconds_each):
    machine = Machine(_h100, noise=0.01, seconds_each=seconds_each)
    result = machine.search(seconds)
    assert machine.now_s - 100 <= max(seconds, 2 * seconds_each)
    assert result.rates[DEFAULT]
    # Nothing is chosen that did not beat the defaults at the end.
    assert result.best == DEFAULT or result.gain > 1.03


def test_a_winner_by_luck_loses_the_last_comparison():
    lucky = LoaderSettings(threads=8, decode="full")
    rounds = {lucky: [1100, 1100, 1100, 990, 990, 990]}

    class Lucky(Machine):
        def measure(self, settings):
            super().measure(settings)
            return LoaderRate(rounds[settings].pop(0) if settings == lucky else 1000.0, 1.0)

    result = Lucky(lambda settings: 1000.0).search(
        space=Space(decoding=[("host", 0.65), ("full", 0.65)])
    )
    assert not rounds[lucky]
    assert result.best == DEFAULT


def test_names_are_those_with_several_values():
    assert SPACE.names == ("threads", "prefetch", "decode", "hw_decoder_load")
    assert Space(decoding=[("host", 0.65), ("full", 0.65)], prefetch=[3]).names == ("decode",)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/dali_rsb/tuned"


TUNED = Tuned({"prefetch": 5, "decode": "full"}, "2026-05-01", 1100.0, 1000.0)


def test_what_is_stored_is_found_under_its_key_alone(cache):
    key = {"cpu": "a", "augment": {"scale": (0.08, 1.0)}, "gpu": None}
    assert load_tuned(key) is None
    path = store_tuned(key, TUNED)
    assert load_tuned(key) == TUNED
    assert load_tuned({**key, "cpu": "b"}) is None
    store_tuned(key, Tuned({"prefetch": 2}, "2026-05-02", 1.0, 1.0))
    assert load_tuned(key).settings == {"prefetch": 2}
    assert list(cache.iterdir()) == [path]
    assert json.loads(path.read_text())["key"]["cpu"] == "a"


@pytest.mark.parametrize("text", ["", "[]", '{"key": 1}', '{"key": {"cpu": "a"}, "settings": 3}'])
def test_a_damaged_file_counts_as_nothing(cache, caplog, text):
    path = store_tuned({"cpu": "a"}, TUNED)
    path.write_text(text)
    assert load_tuned({"cpu": "a"}) is None


def test_a_cache_that_cannot_be_written_is_a_user_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot store the result"):
        store_tuned({"cpu": "a"}, TUNED)
    assert load_tuned({"cpu": "a"}) is None


def _config(digits, *overrides):
    return load_config(
        QUICKSTART,
        [
            f"data.digits={digits}",
            *("augment.size=16", "evaluation.size=16", "evaluation.batch_per_device=128"),
            *("optimizer.batch_size=96", "run.batch_per_device=96", "run.device=cpu"),
            *overrides,
        ],
    )


def _store(config, tuned=TUNED):
    index = open_training(config.data)
    return store_tuned(tuning_key(config, index, CPU, device_batch(config, CPU)), tuned)


def test_given_keys_win_over_tuned_ones_and_those_over_the_defaults(digits, cache, monkeypatch):
    monkeypatch.setattr(cpus, "available_cpus", lambda: 6)
    config = _config(digits)
    index = open_training(config.data)

    def settings(config):
        return resolve_settings(config, index, CPU, 96).settings

    assert settings(config) == LoaderSettings(6, pipelines=2, batches_per_run=10)
    _store(config)
    assert settings(config) == LoaderSettings(6, 5, 2, 10, "full")
    given = _config(digits, "data.prefetch=4", "data.threads=2", "data.hw_decoder_load=0.5")
    assert settings(given) == LoaderSettings(2, 4, 2, 10, "full", 0.5)
    # Another augmentation, batch or number of processes has not been tuned.
    assert settings(_config(digits, "augment.randaugment=null")).prefetch == 3
    assert resolve_settings(config, index, CPU, 48).settings.prefetch == 3
    two = Processes(torch.device("cpu"), world_size=2, local_world_size=2)
    assert resolve_settings(config, index, two, 96).settings == LoaderSettings(
        3, pipelines=2, batches_per_run=10
    )


@pytest.mark.parametrize(
    ("batch", "size_px", "batches"),
    [(64, 32, 16), (256, 160, 1), (32, 160, 8), (32, 224, 4), (512, 224, 1)],
)
def test_runs_of_a_cpu_hold_many_small_images_or_few_large_ones(batch, size_px, batches):
    assert default_settings(CPU.device, 1, batch, size_px).batches_per_run == batches
    assert default_settings(torch.device("cuda", 0), 1, batch, size_px).batches_per_run == 1


def test_training_uses_tuned_settings_and_says_so(digits, cache):
    config = _config(digits, "run.max_steps=1", "data.threads=1")
    _store(config)
    index = open_training(config.data)
    settings = resolve_settings(config, index, CPU, 96).settings
    samples = train_samples(config, index, CPU, 96, settings)
    assert samples.transform.decode_mode == "full"
    loader = train_loader(config.data, samples, settings, CPU)
    assert (loader.prefetch, loader.batches_in_flight) == (5, 50)  # one thread, one pipeline
    trainer = build_trainer(config, CPU)
    assert trainer.loader.prefetch == 5
    lines = [line for line in trainer.introduction if "tuning" in line]
    assert lines == [
        "data.prefetch=5, data.decode=full from tuning on 2026-05-01; set a key to override it"
    ]


# What is searched everywhere, and the configuration that leaves nothing to search on a CPU.
PLACING = ("prefetch", "pipelines", "batches_per_run")
GIVEN = ("data.prefetch=2", "data.pipelines=1", "data.batches_per_run=1", "data.decode=roi")


def _search_space(config, monkeypatch, device="cpu", engines=7, **processes):
    monkeypatch.setattr(command, "count_jpeg_engines", lambda: engines)
    this_process = Processes(torch.device(device), **processes)
    start = command._starting_point(config, this_process, 96)
    return command.search_space(config, this_process, start)


def test_on_a_cpu_threads_keep_their_share(digits, monkeypatch):
    space = _search_space(_config(digits), monkeypatch)
    assert space.names == (*PLACING, "decode")
    given = _config(digits, "data.decode=host", "data.prefetch=2", "data.pipelines=1")
    assert _search_space(given, monkeypatch).names == ("batches_per_run",)


def test_on_a_gpu_all_is_searched_but_what_is_given(digits, monkeypatch):
    monkeypatch.setattr(cpus, "available_cpus", lambda: 32)
    config = _config(digits)
    space = _search_space(config, monkeypatch, "cuda", local_world_size=4)
    assert space.threads == [2, 4, 6, 8, 12, 16]
    assert space.batches_per_run == [1, 2, 4, 8]
    assert space.decoding[0] == ("host", 0.65)
    assert {mode for mode, _ in space.decoding} == {"host", "hybrid", "full"}
    assert {load for _, load in space.decoding} == {0.0, 0.65, 0.9, 1.0}
    assert _search_space(config, monkeypatch, "cuda", engines=0).names == (
        "threads",
        *PLACING,
        "decode",
    )
    given = _config(digits, "data.threads=5", "data.hw_decoder_load=0.8", "data.decode=full")
    assert _search_space(given, monkeypatch, "cuda").names == PLACING


def test_repeated_augmentation_leaves_the_decoding_alone(digits, monkeypatch):
    config = _config(digits, "augment.repeats=3")
    assert _search_space(config, monkeypatch).names == PLACING


def _run_command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["tune", *map(str, arguments)])
    command.main()


def test_the_command_measures_stores_and_prints(digits, cache, monkeypatch, capsys):
    config = _config(digits)
    overrides = [f"data.digits={digits}", "augment.size=16", "evaluation.size=16"]
    overrides += ["evaluation.batch_per_device=128", "optimizer.batch_size=96"]
    overrides += ["run.batch_per_device=96", "run.device=cpu"]
    _run_command(monkeypatch, QUICKSTART, *overrides, "--seconds", 5)
    (path,) = cache.iterdir()
    output = capsys.readouterr()
    assert str(path) in output.out
    *rows, _, _ = output.out.splitlines()
    assert rows[0].split()[-4:] == ["img/s", "+/-", "CPU", "ms"]
    assert sum("default" in row for row in rows) == sum("chosen" in row for row in rows) == 1
    assert "CPU ms/img  the defaults" in output.err
    assert all(len(line) <= 80 for line in rows)
    resolved = resolve_settings(config, open_training(config.data), CPU, 96)
    found = resolved.tuned
    assert found.settings.keys() == {*PLACING, "decode"}
    assert found.img_per_s > 0
    assert resolved.settings.prefetch in (2, 3, 5)


def test_the_table_of_a_gpu_fits_80_columns():
    start = LoaderSettings(threads=16, prefetch=2, pipelines=1, hw_decoder_load=0.65)
    other = replace(start, batches_per_run=8, decode="hybrid", pipelines=4)
    rates = {
        start: [LoaderRate(9_000.0, 0.9), LoaderRate(10_000.0, 1.1), LoaderRate(11_000.0, 1.0)],
        other: [LoaderRate(14_000.0, 0.5)],
    }
    died = {replace(start, decode="full"): "no answer within 2 s"}
    lines = command.table(Result(other, 1.4, rates, False, died), start, command.NAMES).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].endswith("14,000  0%   0.50 chosen")
    assert lines[2].endswith("10,000 10%   1.00 default")
    assert lines[3].endswith(" no answer within 2 s")


def test_ctrl_c_leaves_nothing_behind(digits, cache, monkeypatch, capsys):
    def interrupt(self, settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(command.LoaderMeter, "__call__", interrupt)
    with pytest.raises(SystemExit) as stopped:
        _run_command(monkeypatch, QUICKSTART, f"data.digits={digits}", "run.device=cpu")
    assert stopped.value.code == 130
    assert "nothing was stored" in capsys.readouterr().err
    assert not cache.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seconds", "1"], "at least 5"),
        (["--local-ranks", "0"], "at least 1"),
        (["data.prefetch=1"], "data.prefetch"),
        (["data.digits=null", "run.device=cpu"], "data.train is not set"),
    ],
)
def test_mistakes_are_user_errors(monkeypatch, arguments, message):
    with pytest.raises(UserError, match=message):
        _run_command(monkeypatch, QUICKSTART, *arguments)


def test_nothing_left_to_tune_is_a_user_error(digits, cache):
    with pytest.raises(UserError, match="every setting"):
        command.tune(
            _config(digits, *GIVEN),
            CPU,
            seconds=5,
        )
    assert not cache.exists()


def test_torchrun_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="--local-ranks"):
        _run_command(monkeypatch, QUICKSTART)


def test_an_undecodable_image_is_found_once(tmp_path, caplog):
    folder = tmp_path / "images" / "a"
    folder.mkdir(parents=True)
    for i in range(16):
        Image.fromarray(np.full((40, 40, 3), 10 * i, np.uint8)).save(folder / f"{i:02d}.jpg")
    path = folder / "07.jpg"
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"\xff\xda") + 20])  # its header is whole
    overrides = ["data.digits=null", f"data.train={tmp_path / 'images'}", "augment.size=16"]
    overrides += ["optimizer.batch_size=16", "run.batch_per_device=16", "run.device=cpu"]
    overrides += ["data.threads=1", "mixing.group_size=16"]
    config = load_config(QUICKSTART, overrides)
    meter = command.LoaderMeter(config, open_training(config.data), CPU, 16, seconds=0.01)
    caplog.clear()
    for mode in ("host", "full"):
        reading = meter(LoaderSettings(1, decode=mode))
        assert reading.img_per_s > 0
        assert reading.cpu_ms_per_img > 0
    assert len([line for line in caplog.messages if "07.jpg cannot be decoded" in line]) == 1


@pytest.mark.gpu
def test_tuning_on_a_gpu(photo_folder, cache, monkeypatch):
    overrides = ["data.digits=null", f"data.train={photo_folder}", "run.device=cuda"]
    overrides += ["augment.size=64", "optimizer.batch_size=8", "run.batch_per_device=8"]
    config = load_config(QUICKSTART, [*overrides, "mixing.group_size=8"])
    this_process = Processes(torch.device("cuda", 0))
    found = command.tune(config, this_process, seconds=20)
    assert {"threads", "prefetch", "decode"} <= found.settings.keys()
    assert found.img_per_s > 0
    index = open_training(config.data)
    assert resolve_settings(config, index, this_process, 8).tuned == found
