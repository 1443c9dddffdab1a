"""train.log holds all messages, also those about files of any name, and those before it began."""

import logging
import os

import numpy as np
import pytest

from dali_rsb.run.console import console_messages
from dali_rsb.run.log import RunLog, early_messages


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
