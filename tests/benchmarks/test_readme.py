"""README and docs say what the committed results say, and the files that they name exist."""

import json
import re

import pytest
from conftest import ROOT

from benchmarks import tables
from dali_rsb.checks.machine.storage import CPU_RATE

README_PATH = tables.README
README = README_PATH.read_text()


def test_tables_are_those_of_the_committed_results():
    hint = "run python -m benchmarks.tables"
    assert tables.replace_results(README, tables.render_brief()) == README, hint
    page = tables.PAGE.read_text()
    assert tables.replace_results(page, tables.render()) == page, hint


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"(?:configs|docs|benchmarks)/\S+?\.\w+", README)))
)
def test_files_it_names_exist(path):
    assert (ROOT / path).exists()


def test_the_doctor_expects_the_rate_that_was_measured():
    rates = re.findall(r"^\| dali_rsb \| (\d+) ", README, re.MULTILINE)
    assert f"{2 * CPU_RATE:.0f}" == rates[0]


@pytest.mark.parametrize("path", sorted([README_PATH, *ROOT.glob("*/*.md")]), ids=lambda p: p.name)
def test_tables_have_as_many_cells_in_every_row(path):
    tables_of_page = re.findall(r"(?:^\|.*\|\n)+", path.read_text(), re.MULTILINE)
    for table in tables_of_page:
        cells = {row.count("|") - row.count("\\|") for row in table.splitlines()}
        assert len(cells) == 1, table


def test_the_page_on_parity_holds_the_committed_results():
    page = (ROOT / "docs/parity.md").read_text()
    results = json.loads((ROOT / "benchmarks/results/parity_cpu.json").read_text())
    for stage in results["stages"]:
        row = f"| {stage['stage']} | {stage['largest']} | {stage['mean']:.3f} |"
        assert row in page


WHERE = {
    "machine": {"cpu": "Abacus", "cpus_usable": 16, "gpu": "Loom"},
    "versions": {"torch": "2.10", "nvidia-dali-cuda130": "2.4", "timm": "1.0"},
}
SETTINGS = {
    "config": "a3",
    "model": "resnet50",
    "size_px": 160,
    "global_batch": 2048,
    "optimizer": "lamb",
    "ema": True,
    "rounds": 3,
}


def _rate(median):
    return {"median": median, "min": median - 1, "max": median + 1}


def test_what_is_not_measured_is_named(tmp_path):
    text = tables.render(tmp_path)
    assert text.startswith("Not measured yet: the loader on a CPU; ")
    assert all(title in text for title, _ in tables.TABLES.values())


def test_every_result_has_its_table(tmp_path):
    """The benchmarks' own tests say that they write these keys."""
    triple = {
        "loader": _rate(9000.0),
        "model": _rate(8000.0),
        "together": _rate(7900.0),
        "share_of_slower": _rate(0.9875),
        "data_wait_percent": _rate(1.25),
        "verdict": "limited by the model: nothing to do",
    }
    times = {part: _rate(12.5) for part in ("mix", "forward", "backward", "optimizer")}
    step = {"img_per_s": _rate(5000.0), "ms_per_update": times, "peak_memory_gib": 10.2}
    kernel = {"floor_us": 30.0, "candidates": {"dali_rsb": {"us": _rate(33.4)}}}
    results = {
        "train_gpu": {"settings": SETTINGS, "triples": {"dali_rsb": triple}},
        "step_gpu": {
            "settings": SETTINGS,
            "candidates": {"dali_rsb": step, "timm": step},
            "fastest": "dali_rsb",
        },
        "mix_gpu": {"settings": SETTINGS, "benchmark": "mix", "cases": {"mixup": kernel}},
        "train_cpu": {"settings": SETTINGS, "triples": {"dali_rsb": triple}},
        "loss_cpu": {
            "settings": SETTINGS,
            "benchmark": "loss",
            "cases": {
                "A1": {
                    "candidates": {
                        "dali_rsb": {"us": _rate(2000), "times_ours": _rate(1.0)},
                        "timm": {"us": _rate(3000), "times_ours": _rate(1.4)},
                    }
                }
            },
        },
    }
    for name, result in results.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(result | WHERE))
    text = tables.render(tmp_path)
    assert "| dali_rsb | 9000 | 8000 | 7900 (7899 to 7901) | 98.8 % | 1.2 % |" in text
    assert "dali_rsb is limited by the model: nothing to do" in text
    assert "| **dali_rsb** | 5000 (4999 to 5001) | 12.5 | 12.5 | 12.5 | 12.5 | 10.2 |" in text
    assert "| timm's step | 5000" in text
    assert "| mixup | 30 | 33 |" in text
    assert text.count("on one Loom, 16 cores of an Abacus; median of 3 alternating rounds") == 5
    assert "| loss: A1 | 2.0 (2.0 to 2.0) | 3.0 (3.0 to 3.0) | 1.4 x |" in text
    missing = text.partition("Not measured yet: ")[2]
    assert "the loader on a GPU" in missing
    assert "the training step on a GPU" not in missing


def test_the_loaders_results_have_their_tables(tmp_path):
    rate = {"img_per_s": _rate(1000.0), "cpu_ms_per_img": _rate(1.5)}
    settings = {"size_px": 160, "batch": 256, "randaugment": "rand-m6", "rounds": 5}
    ratios = {"dali_rsb tiles plain / FFCV plain": _rate(1.25)}
    of_step = {"us": _rate(100.0)}
    results = {
        "peer_loaders_cpu": {
            "dataset": {"images": 2000},
            "groups": {
                "anything_goes": {
                    "candidates": {
                        "FFCV plain": rate | {"img_per_s": _rate(800.0)},
                        "dali_rsb tiles plain": rate,
                    },
                    "ratios": ratios,
                    "left_out": {"LitData plain": "it is not installed"},
                }
            },
        },
        "loader_profile_cpu": {
            "steps": {"Python: draws": of_step, "reading": of_step | {"kernel_us": 40.0}},
            "sums": {"all steps": 200.0, "the loader on 1 thread": 250.0},
            "branches": {
                "AUTO_CONTRAST": of_step
                | {"dali_us": 300.0, "of_an_image": 0.5, "us_of_an_image": 50.0}
            },
        },
        "scaling_cpu": {
            "measured": {"2 cores": rate},
            "validation": {
                "2 cores": {"measured": 1000.0, "modelled": 1100, "error_percent": 10.0}
            },
            "estimates": {
                "16 cores": {
                    "default": 6000,
                    "one_process": 7000,
                    "best": 9000,
                    "processes": 2,
                    "pipelines": 4,
                    "without_waiting": 10000,
                }
            },
            "lock_limit_img_per_s": 14000,
            "locked_us": 70.0,
            "total_us": 1500.0,
        },
    }
    for name, result in results.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"settings": settings} | result | WHERE))
    text = tables.render(tmp_path)
    assert "| loader | img/s | CPU ms/img | dali_rsb tiles against it |" in text
    assert "| FFCV | 800 (799 to 801) | 1.50 | 1.25 x |" in text
    assert "LitData: left out, it is not installed." in text
    assert "| reading | 100 | 40.0 % | 40 |" in text
    assert "| auto contrast | 100 | 300 | 0.500 | 50.0 |" in text
    assert "| 2 | 1000 | 1.50 | 1100 | +10.0 % |" in text
    assert "| 16 | 6,000 | 7,000 | 9,000 | 2 x 4 | 90 % |" in text
