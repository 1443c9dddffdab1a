"""Reading parts of a shard, whatever the kernel answers, into memory that batches share in turn."""

import errno
import gc
import os
from pathlib import Path

import numpy as np
import pytest

from dali_rsb.dataset.shard_file import BatchMemory, ShardFile, read_parts
from dali_rsb.errors import UserError

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(CONTENT)
    return ShardFile(path, os.open(path, os.O_RDONLY))


def test_parts_lie_side_by_side(shard):
    parts = [(shard, 0, 3), (shard, 100, 100), (shard, 9000, len(CONTENT))]
    arrays = read_parts(BatchMemory(), parts)
    assert [array.tobytes() for array in arrays] == [CONTENT[start:end] for _, start, end in parts]


def test_a_read_that_gives_less_is_gone_on_with(shard, monkeypatch):
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, to, at: preadv(file, [to[0][:7]], at))
    assert shard.read(11, 500) == CONTENT[11:500]


def test_storage_that_fails_is_named(shard, monkeypatch):
    def fail(*arguments):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(UserError, match=r"a\.tar cannot be read \(Input/output error\): restore"):
        shard.read(0, 5)


def test_the_end_of_the_file_is_no_end_of_an_image(shard):
    shard.check_size()
    os.truncate(shard.path, 100)
    assert shard.read(90, 100) == CONTENT[90:100]
    with pytest.raises(UserError, match=r"a\.tar has been cut short while in use"):
        shard.read(90, 101)
    with pytest.raises(UserError, match=r"a\.tar has been cut short while in use"):
        shard.check_size()


def test_a_shard_is_closed_when_nobody_holds_it(shard, tmp_path):
    path = tmp_path / "b.tar"
    path.write_bytes(b"1")
    other = ShardFile(path, os.open(path, os.O_RDONLY))
    assert other.read(0, 1) == b"1"
    del other
    gc.collect()
    open_files = Path("/proc/self/fd").iterdir()
    assert path not in [file.readlink() for file in open_files if file.exists()]


def test_memory_is_lent_again_when_the_last_view_of_it_is_gone():
    memory = BatchMemory()
    first = memory.lend(1000)
    place, view = first.ctypes.data, first[10:20].reshape(2, 5)
    del first
    gc.collect()
    second = memory.lend(900)
    assert not np.shares_memory(second, view)
    assert second.ctypes.data != place
    del view
    gc.collect()
    assert memory.lend(1100).ctypes.data == place  # a quarter more was taken than asked for
    gc.collect()
    assert len(memory.lend(5000)) == 5000
    assert len(memory.lend(0)) == 0
