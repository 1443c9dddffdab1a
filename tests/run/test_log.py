"""train.log holds all messages, also those about files of any name, and those before it began."""

import logging
import os

import numpy as np

from dali_rsb.run.console import console_messages
from dali_rsb.run.log import RunLog


def test_messages_from_before_the_run_folder_stand_first(tmp_path):
    early, later = logging.getLogger("dali_rsb.dataset"), logging.getLogger("dali_rsb.run")
    with console_messages():
        early.warning("2 images are left out")
        log = RunLog(tmp_path)
        later.info("an epoch")
        log.close()
    lines = (tmp_path / "train.log").read_text(encoding="utf-8").splitlines()
    assert [line.partition(" WARNING ")[2] for line in lines[:1]] == ["2 images are left out"]
    assert [line.partition(" INFO ")[2] for line in lines[1:]] == ["an epoch"]


def test_a_later_run_of_the_same_process_says_nothing_of_the_one_before(tmp_path):
    for run in ("first", "second"):
        (tmp_path / run).mkdir()
        with console_messages():
            logging.getLogger("dali_rsb.dataset").warning("of the %s", run)
            RunLog(tmp_path / run).close()
    text = (tmp_path / "second" / "train.log").read_text(encoding="utf-8")
    assert "of the second" in text
    assert "of the first" not in text


def test_names_of_any_bytes_are_written_without_a_traceback(tmp_path, capsys):
    rng = np.random.default_rng(0)
    names = [os.fsdecode(rng.bytes(12)) for _ in range(50)] + [os.fsdecode(b"caf\xe9.jpg")]
    log = RunLog(tmp_path)
    for name in names:
        logging.getLogger("dali_rsb.loader").warning("%s cannot be decoded", name)
    log.close()
    text = (tmp_path / "train.log").read_text(encoding="utf-8")
    assert text.count(" cannot be decoded") == len(names)
    assert r"caf\udce9.jpg cannot be decoded" in text
    assert "Traceback" not in capsys.readouterr().err
