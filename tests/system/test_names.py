"""Names of files of any bytes become text in one line that can be printed."""

import os

import numpy as np
import pytest

from dali_rsb.system.names import printable


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"plain 1.jpg", "plain 1.jpg"),
        ("dash-\u00fc \u540d\u524d.JPG".encode(), "dash-\u00fc \u540d\u524d.JPG"),
        (b"caf\xe9.jpg", r"caf\xe9.jpg"),
        (b"new\nline\r.jpg", r"new\nline\r.jpg"),
        (b"\x1b[31mred\x7f", r"\x1b[31mred\x7f"),
        ("a\u2028b".encode(), r"a\u2028b"),
    ],
)
def test_names_are_shown_in_one_line(name, shown):
    assert printable(os.fsdecode(name)) == shown


def test_any_bytes_can_be_encoded_and_take_one_line():
    rng = np.random.default_rng(0)
    for _ in range(500):
        shown = printable(os.fsdecode(rng.bytes(rng.integers(1, 20))))
        assert shown.encode("utf-8").decode("utf-8") == shown
        assert len(shown.splitlines()) == 1
        assert shown.isprintable()
