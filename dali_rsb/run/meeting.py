"""How the processes of one start tell each other apart from those of an earlier one.

A launcher keeps its store when it starts its processes again, and with it what the earlier ones
left there. Nothing that it gives them numbers the starts: each node counts for itself what is in
`TORCHELASTIC_RESTART_COUNT`, and only its own failures
(https://github.com/pytorch/pytorch/issues/135712). Rank 0 draws a name, therefore, and each other
process gets it in answer to a number that it has just drawn itself.
"""

from __future__ import annotations

import secrets
import time

from torch._C._distributed_c10d import Store

from dali_rsb.errors import UserError

_PAUSE_S = 0.05


def name_of_start(store: Store, rank: int, world_size: int, timeout_s: float) -> str:
    """A name that all processes of this start share, and none of an earlier one.

    Args:
        store: that all processes share; an earlier start may have written to it.
        rank, world_size: of this process.
        timeout_s: so long may the others take to come.

    Raises:
        UserError: they take longer, or the process that keeps the store has ended.
    """
    deadline_s = time.monotonic() + timeout_s
    try:
        if rank == 0:
            return _give(store, world_size, deadline_s)
        return _ask(store, rank, deadline_s)
    except RuntimeError as error:  # what the store throws where its host is gone
        raise UserError(
            "the first process, or the launcher, ended before all processes had met: see what it "
            "printed"
        ) from error


def _give(store: Store, world_size: int, deadline_s: float) -> str:
    name = secrets.token_hex(8)
    missing = list(range(1, world_size))
    while True:
        # An earlier process's number may stand there yet: answer until the name has arrived.
        for rank in missing:
            if store.check([f"hello/{rank}"]):
                store.set(f"answer/{rank}", f"{store.get(f'hello/{rank}').decode()} {name}")
        missing = [rank for rank in missing if _read(store, f"thanks/{rank}") != name]
        if not missing:
            return name
        if time.monotonic() > deadline_s:
            raise UserError(
                f"process {', '.join(map(str, missing))} of {world_size} did not come within "
                "run.timeout: see what it printed, and whether its machine reaches this one"
            )
        time.sleep(_PAUSE_S)


def _ask(store: Store, rank: int, deadline_s: float) -> str:
    number = secrets.token_hex(8)
    store.set(f"hello/{rank}", number)
    while time.monotonic() <= deadline_s:
        answered, _, name = _read(store, f"answer/{rank}").partition(" ")
        if answered == number:
            store.set(f"thanks/{rank}", name)
            return name
        time.sleep(_PAUSE_S)
    raise UserError(
        "the first process did not answer within run.timeout: see what it printed, and whether "
        "this machine reaches its machine"
    )


def _read(store: Store, key: str) -> str:
    return store.get(key).decode() if store.check([key]) else ""
