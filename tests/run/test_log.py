"""train.log holds all messages, also those about files of any name, and those before it began."""

import logging
import os
from dataclasses import replace

import numpy as np
import pytest

from dali_rsb.run.console import console_messages
from dali_rsb.run.log import RunLog, duration, early_messages
from dali_rsb.run.records import EpochRow, UpdateRow


@pytest.fixture(autouse=True)
def level():
    """What a test sets of the package's logger is undone."""
    package = logging.getLogger("dali_rsb")
    before = package.level
    yield
    package.setLevel(before)


def lines_of(folder):
    return (folder / "train.log").read_text(encoding="utf-8").splitlines()


def test_names_of_any_bytes_are_written_without_a_traceback(tmp_path, capsys):
    rng = np.random.default_rng(0)
    names = [os.fsdecode(rng.bytes(12)) for _ in range(50)] + [os.fsdecode(b"caf\xe9.jpg")]
    log = RunLog(tmp_path)
    for name in names:
        logging.getLogger("dali_rsb.loader").warning("%s cannot be decoded", name)
    log.close()
    lines = lines_of(tmp_path)
    assert len(lines) == len(names)
    assert all(line.endswith(" cannot be decoded") for line in lines)
    assert lines[-1].endswith(r" WARNING caf\xe9.jpg cannot be decoded")
    assert "Traceback" not in capsys.readouterr().err


def test_messages_from_before_the_run_folder_stand_first(tmp_path):
    early, later = logging.getLogger("dali_rsb.dataset"), logging.getLogger("dali_rsb.run")
    with console_messages(), early_messages():
        early.info("indexed")
        early.warning("2 images are left out")
        log = RunLog(tmp_path)
        later.info("an epoch")
        log.close()
        later.info("of another run")
    found = [line.split(maxsplit=2)[2] for line in lines_of(tmp_path)]
    assert found == ["INFO indexed", "WARNING 2 images are left out", "INFO an epoch"]


def test_a_later_run_of_the_same_process_says_nothing_of_the_one_before(tmp_path):
    for run in ("first", "second"):
        (tmp_path / run).mkdir()
        with console_messages(), early_messages():
            logging.getLogger("dali_rsb.dataset").warning("of the %s", run)
            RunLog(tmp_path / run).close()
    assert [line.partition("of the ")[2] for line in lines_of(tmp_path / "second")] == ["second"]


def test_nothing_is_kept_on_other_ranks_or_after_an_error(tmp_path):
    package = logging.getLogger("dali_rsb")
    before = list(package.handlers)
    with console_messages(is_first=False), early_messages():
        RunLog(None).close()
        assert len(package.handlers) == len(before) + 1  # the console
    with pytest.raises(RuntimeError), early_messages():
        raise RuntimeError
    assert package.handlers == before


def test_an_error_keeps_its_traceback_on_lines_of_its_own(tmp_path):
    log = RunLog(tmp_path)
    try:
        raise RuntimeError("of a library")
    except RuntimeError:
        logging.getLogger("dali_rsb.run").exception("in\none line")
    log.close()
    lines = lines_of(tmp_path)
    assert lines[0].endswith(r"ERROR in\none line")
    assert lines[-1] == "RuntimeError: of a library"


def _update(epoch, update, **changes):
    row = UpdateRow(epoch, 100, update, 5004, 6.9078, 8e-3, 13_136.4, 3.94, 0)
    return replace(row, **changes)


def test_the_lines_of_a_long_run_fit_a_terminal_of_80_columns(tmp_path):
    log = RunLog(tmp_path)
    log.log_update(_update(100, 5003), left_s=54_000)
    accuracies = {"val_top1": 78.12, "val_top5": 100.0, "ema_top1": 78.5, "ema_top5": 100.0}
    row = EpochRow(100, 9, 6.9, 8e-3, 13_136.4, 3.94, 0, val_loss=0.9, time_s=9.0, **accuracies)
    log.log_epoch(row, num_epochs=100)
    log.close()
    lines = [line.partition(" INFO ")[2] for line in lines_of(tmp_path)]
    assert lines == [
        "epoch 99.99/100  loss 6.9078  lr 8.00e-03  13,136 img/s  wait 3.9 %  left 15.0 h",
        "epoch 100/100  train loss 6.9000  13,136 img/s  data wait 3.9 %",
        "epoch 100/100  top-1 78.12 %  top-5 100.00 %  EMA top-1 78.50 %  top-5 100.00 %",
    ]
    assert max(map(len, lines)) <= 80


def test_an_epoch_that_goes_on_is_never_rounded_up(tmp_path):
    log = RunLog(tmp_path)
    for epoch, update in ((1, 1), (1, 5003), (1, 5004), (2, 2502)):
        log.log_update(_update(epoch, update), left_s=30)
    log.close()
    shown = [line.partition("epoch ")[2].split("/")[0] for line in lines_of(tmp_path)]
    assert shown == ["0.00", "0.99", "1.00", "1.50"]


def test_without_an_evaluation_an_epoch_is_one_line(tmp_path):
    log = RunLog(tmp_path)
    nothing = dict.fromkeys(("val_loss", "val_top1", "val_top5", "ema_top1", "ema_top5"))
    log.log_epoch(EpochRow(2, 8, 0.5, 0.1, 90.0, 0.0, 3, time_s=9.0, **nothing), num_epochs=9)
    log.close()
    (line,) = lines_of(tmp_path)
    assert line.endswith("epoch 2/9  train loss 0.5000  90 img/s  data wait 0.0 %  skipped 3")


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        *((0.4, "0 s"), (99.4, "99 s"), (99.5, "2 min"), (100, "2 min")),
        *((5900, "98 min"), (5969, "99 min"), (5970, "1.7 h"), (5990, "1.7 h")),
    ],
)
def test_times_are_told_in_the_unit_that_fits(seconds, expected):
    assert duration(seconds) == expected
