"""Processes that are started again share a name with each other, and with no earlier ones."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import HashStore, TCPStore

from dali_rsb.errors import UserError
from dali_rsb.run.meeting import name_of_start

RANKS = range(3)


def _meet(store, pauses_s=(0, 0, 0), timeout_s=30):
    """What each of three processes, of which some come late, takes for the name."""

    def join(rank):
        time.sleep(pauses_s[rank])
        return name_of_start(store, rank, len(RANKS), timeout_s)

    with ThreadPoolExecutor(len(RANKS)) as pool:
        return list(pool.map(join, RANKS))


@pytest.mark.parametrize("pauses_s", [(0, 0, 0), (0.3, 0, 0), (0, 0.3, 0), (0, 0, 0.3)])
def test_all_get_one_name_that_no_earlier_start_had(pauses_s):
    store, names = HashStore(), set()
    for start in range(3):
        found = _meet(store, pauses_s)
        assert len(set(found)) == 1
        names.add(found[0])
        assert len(names) == start + 1


@pytest.mark.parametrize("lost", ["answer/1", "thanks/1", "hello/2"])
def test_a_start_that_was_broken_off_leaves_the_next_one_alone(lost):
    store = HashStore()
    _meet(store)
    store.delete_key(lost)
    (name,) = set(_meet(store, (0.2, 0, 0.1)))
    (other,) = set(_meet(store, (0, 0.2, 0.1)))
    assert name != other


def test_who_does_not_come_is_named():
    store = HashStore()
    _meet(store)  # whose words of before are not taken for theirs
    first = threading.Thread(target=name_of_start, args=(store, 1, 3, 30))
    first.start()
    with pytest.raises(UserError, match=r"process 2 of 3 did not come within run\.timeout"):
        name_of_start(store, 0, 3, 0.5)
    first.join()
    with pytest.raises(UserError, match=r"first process did not answer within run\.timeout"):
        name_of_start(store, 2, 3, 0.2)


def test_a_store_that_is_gone_is_one_line():
    host = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    guest = TCPStore("127.0.0.1", host.port, timeout=timedelta(seconds=5), wait_for_workers=False)
    del host
    with pytest.raises(UserError, match="ended before all processes had met"):
        name_of_start(guest, 1, 2, 30)
