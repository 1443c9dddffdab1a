"""What sessions.jsonl says of a run: rewinds, kills, half lines, a disk that is full."""

import json
import logging
from dataclasses import replace

import pytest

from dali_rsb.errors import UserError
from dali_rsb.run import sessions as module
from dali_rsb.run.sessions import (
    SESSIONS,
    Session,
    digest_of,
    read_sessions,
    record_end,
    record_start,
    standing,
)

PLAIN = Session(2, "cpu", 32, 8, updates_per_epoch=8, config_digest="12", num_images=320)


def _report(folder, epoch, update, unix_time_s):
    line = {"kind": "update", "epoch": epoch, "update": update, "unix_time_s": unix_time_s}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def _start(folder, at_s, first=(0, 0), **changes):
    session = replace(PLAIN, started_s=at_s, first=first, last=first, **changes)
    record_start(folder, session)
    return session


def test_what_is_written_is_read(tmp_path):
    assert read_sessions(tmp_path) == []
    session = _start(tmp_path, 100.0, dtype="float16", device="cuda", by_kernels=True)
    assert read_sessions(tmp_path) == [session]
    record_end(tmp_path, (2, 3))
    assert read_sessions(tmp_path) == [replace(session, last=(2, 3))]
    assert all((tmp_path / SESSIONS).read_text().splitlines())  # none is empty
    assert digest_of("a: 1\n") != digest_of("a: 2\n")


def test_updates_that_were_made_again_belong_to_the_later_session(tmp_path):
    _start(tmp_path, 100.0)
    _report(tmp_path, 1, 4, 110.0)
    _report(tmp_path, 2, 4, 120.0)  # then it was killed
    _start(tmp_path, 200.0, first=(0, 4))
    _report(tmp_path, 1, 8, 210.0)
    _start(tmp_path, 300.0, first=(0, 6), world_size=1)
    record_end(tmp_path, (2, 2))
    sessions = read_sessions(tmp_path)
    assert [session.last for session in sessions] == [(1, 4), (0, 8), (2, 2)]
    parts = [(first, end) for _, first, end in standing(sessions)]
    assert parts == [((0, 0), (0, 4)), ((0, 4), (0, 6)), ((0, 6), (2, 2))]
    assert [session for session, _, _ in standing(sessions)] == sessions
    # One that made nothing is left out.
    assert len(standing([*sessions, replace(PLAIN, first=(2, 2), last=(2, 2))])) == 3


def test_half_a_line_of_a_killed_run_is_left_behind(tmp_path):
    (tmp_path / SESSIONS).write_text('{"kind": "start", "wor')
    session = _start(tmp_path, 100.0)
    assert read_sessions(tmp_path) == [session]
    with (tmp_path / SESSIONS).open("a") as file:
        file.write("half")
    record_end(tmp_path, (0, 3))
    assert read_sessions(tmp_path) == [replace(session, last=(0, 3))]


def test_a_line_of_a_later_version_is_read(tmp_path):
    session = _start(tmp_path, 100.0)
    line = json.loads((tmp_path / SESSIONS).read_text()) | {"colour": "blue"}
    (tmp_path / SESSIONS).write_text(json.dumps(line) + "\n" + '{"kind": "pause"}\n')
    assert read_sessions(tmp_path) == [session]


def test_a_disk_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="dali_rsb"):
        record_start(tmp_path / "nowhere", PLAIN)
    assert "dali-rsb replay will go by the checkpoint" in caplog.text
    assert module.SESSIONS in caplog.text


def test_a_file_that_is_no_text_is_one_line(tmp_path):
    (tmp_path / SESSIONS).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"sessions\.jsonl .* move it away"):
        read_sessions(tmp_path)
