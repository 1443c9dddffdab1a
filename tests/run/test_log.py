"""train.log holds all messages, also those about files of any name."""

import logging
import os

import numpy as np

from dali_rsb.run.log import RunLog


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
