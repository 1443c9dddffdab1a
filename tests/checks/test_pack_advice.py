"""Which pack pays: the arithmetic, and a measurement on a few images."""

import dataclasses
import re
import sys

import pytest
import torch
from PIL import Image

from dali_rsb import doctor, open_index, tune
from dali_rsb import pack as command
from dali_rsb.checks.machine import packs
from dali_rsb.checks.machine.pack_advice import Advice, PackCost, check_packs
from dali_rsb.config import override_config
from dali_rsb.dataset.packing import PackOptions
from dali_rsb.errors import UserError
from dali_rsb.training.measuring import RecipeLoading

ORIGINALS = PackCost(PackOptions(), False, 150 * 10**9, 1.6, 100_000)
RAW = PackCost(PackOptions(tiles=True, raw=0.5), False, 430 * 10**9, 0.8, 250_000)
SMALL = PackCost(PackOptions(max_side=400, quality=90), True, 60 * 10**9, 1.0, 40_000)


def _advice(*costs, disk=None):
    return Advice(costs, 1_000_000, 100, 2, disk, "A3")


def test_hours_are_those_of_the_cores_or_of_the_disk():
    advice = _advice(ORIGINALS, RAW)
    # 1.6 ms of two cores: 1,250 images a second.
    assert advice.hours(ORIGINALS) == pytest.approx(1e8 / 1250 / 3600)
    assert advice.needed_mb_per_s(ORIGINALS) == pytest.approx(125)
    assert advice.hours(RAW) == pytest.approx(1e8 / 2500 / 3600)
    # 200 MB/s are 800 raw images.
    slow = _advice(ORIGINALS, RAW, disk=200.0)
    assert slow.hours(ORIGINALS) == advice.hours(ORIGINALS)
    assert slow.hours(RAW) == pytest.approx(1e8 / 800 / 3600)


def test_the_verdict_names_what_pays_without_other_pixels_and_with_them():
    verdict = " ".join(_advice(ORIGINALS, RAW, SMALL).verdict().split())
    assert verdict == (
        "with the same pixels: --tiles --raw 0.5 saves 11.1 of 22.2 hours (2.00 times the rate), "
        "and takes 280 GB more"
    )
    verdict = " ".join(_advice(ORIGINALS, RAW, SMALL, disk=200.0).verdict().split())
    assert verdict == (
        "with the same pixels: no pack is faster than the original bytes "
        "with other pixels: --max-side 400 --quality 90 saves 8.33 of 22.2 hours (1.60 times the "
        "rate), and takes 90 GB less"
    )
    noise = dataclasses.replace(RAW, cpu_ms=1.58)
    assert "no pack is faster" in _advice(ORIGINALS, noise).verdict()


def test_a_finding_has_the_command(tmp_path):
    finding = check_packs(tmp_path, _advice(ORIGINALS, RAW))
    assert finding.level == "note"
    assert finding.fix.startswith(f"dali-rsb pack {tmp_path} DIRECTORY --tiles --raw 0.5")
    finding = check_packs(tmp_path, _advice(ORIGINALS, RAW, disk=200.0))
    assert (finding.level, finding.fix) == ("ok", None)


@pytest.mark.parametrize("disk", [None, 200.0])
def test_the_table_fits_a_terminal_and_says_whose_pixels_stay(disk):
    large = dataclasses.replace(RAW, num_bytes=12_345 * 10**9, cpu_ms=12.34, read_bytes=9_999_999)
    options = PackOptions(max_side=65_500, quality=100, raw=0.123456, tiles=True)
    long = dataclasses.replace(SMALL, options=options)
    advice = _advice(ORIGINALS, RAW, SMALL, large, long, disk=disk)
    lines = f"{advice.table()}\n{advice.explanation()}\n{advice.verdict()}".splitlines()
    assert max(map(len, lines)) <= 80
    table = [re.split(r" {2,}", line) for line in advice.table().splitlines()]
    assert [row[1].split()[0] for row in table[:4]] == ["pixels", "same", "same", "changed"]
    figures = [line.split()[-5:-1] for line in advice.table().splitlines()[:3]]
    assert figures[0] == ["CPU", "ms", "hours", "MB/s"]
    assert figures[1] == ["150", "1.60", "22.2", "125"]  # of GB, ms, hours and MB/s
    assert figures[2][:2] == ["430", "0.80"]
    last = [line.split()[-1] for line in advice.table().splitlines()[1:4]]
    assert last == (["?"] * 3 if disk is None else ["ok", "slow", "ok"])


@pytest.fixture
def loading():
    tree = {"name": "small", "data": {}, "augment": {"size": 32, "randaugment": None}}
    return RecipeLoading(override_config(tree, ["schedule.epochs=7"]), torch.device("cpu"))


@pytest.fixture
def index(photographs, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for number in range(12):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        photographs[number].resize((500, 375), Image.Resampling.BILINEAR).save(path, quality=95)
    return open_index(tmp_path / "images", progress=False)


def test_a_few_images_are_packed_and_loaded_in_each_way(index, loading, tmp_path, monkeypatch):
    monkeypatch.setattr(packs.shutil, "which", lambda _: None)  # no tiles: see the benchmarks
    told = []
    advice = packs.advise(
        index,
        loading,
        folder=tmp_path,
        asked=PackOptions(raw=1.0),
        tell=told.append,
        seconds=0,
    )
    originals, small, small_raw, raw = advice.costs
    assert [cost.changes_pixels for cost in advice.costs] == [False, True, True, False]
    assert (advice.num_images, advice.epochs, advice.recipe) == (12, 7, "small")
    mean_bytes = index.encoded_bytes.mean()
    assert originals.read_bytes == mean_bytes
    assert originals.num_bytes == pytest.approx(12 * mean_bytes, rel=0.1)
    assert raw.num_bytes == pytest.approx(12 * 3 * 500 * 375, rel=0.02)
    # Of pixels the rows of the crop are read: no file is. Half a window's area is not read either.
    assert 0.3 < raw.read_bytes / (3 * 500 * 375) < 1
    assert small.read_bytes < originals.read_bytes < small_raw.read_bytes
    assert all(0 < cost.cpu_ms < 1000 for cost in advice.costs)
    assert len(told) == 4 + 4 + packs.MIN_ROUNDS
    assert not list(tmp_path.glob(".dali_rsb_*"))


def test_a_folder_that_cannot_be_written_is_said(index, loading, tmp_path):
    with pytest.raises(UserError, match=r"cannot write the packs .* name a DST on another disk"):
        packs.advise(index, loading, folder=tmp_path / "missing")


@pytest.fixture
def asked(monkeypatch):
    """What `advise` was called with; it answers without measuring."""
    calls = []

    def advise(*arguments, **options):
        calls.append((*arguments, options))
        options["tell"]("progress")
        return _advice(ORIGINALS, RAW)

    monkeypatch.setattr(packs, "advise", advise)
    return calls


def test_a_dry_run_of_a_pack_writes_nothing(index, asked, tmp_path, monkeypatch, capsys):
    target = tmp_path / "new" / "packed"
    arguments = ["pack", index.root, target, "--dry-run", "--raw", "0.25"]
    monkeypatch.setattr(sys, "argv", [*map(str, arguments)])
    command.main()
    out, err = capsys.readouterr()
    assert out.startswith("12 images will take ")
    assert "--tiles --raw 0.5 saves 11.1" in " ".join(out.split())
    assert "progress" in err
    ((of, loading, options),) = asked
    assert (len(of), loading.name, loading.epochs) == (12, "A3", 100)
    assert options["asked"].raw == 0.25
    assert options["folder"] == tmp_path  # on the disk that the pack is for
    assert not target.parent.exists()


def test_doctor_gives_the_outcome_in_a_line(index, asked, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "diagnose", lambda data: iter(()))
    monkeypatch.setattr(sys, "argv", ["doctor", str(index.root), "--packs"])
    with pytest.raises(SystemExit) as stop:
        doctor.main()
    assert stop.value.code == 0
    line, *lines = capsys.readouterr().out.splitlines()
    fix = " ".join(lines)  # where a path is long
    assert line.startswith("NOTE    packs: with the same pixels: --tiles --raw 0.5 saves")
    assert fix.split("->")[1].split()[:3] == ["dali-rsb", "pack", str(index.root)]
    monkeypatch.setattr(sys, "argv", ["doctor", "--packs"])
    with pytest.raises(UserError, match="--packs needs DATA"):
        doctor.main()


def test_tune_measures_the_packs_of_its_configuration(index, asked, monkeypatch, capsys):
    tuned = []
    monkeypatch.setattr(tune, "tune", lambda config, process, seconds: tuned.append(config))
    arguments = ["a2", f"data.train={index.root}", "run.device=cpu", "--packs"]
    monkeypatch.setattr(sys, "argv", ["tune", *arguments])
    tune.main()
    ((of, loading, _),) = asked
    assert (len(of), loading.config, loading.epochs) == (12, tuned[0], 300)
    assert "--tiles --raw 0.5" in capsys.readouterr().out
