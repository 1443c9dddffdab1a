"""Processes that watch each other: none ends or falls silent without all others hearing why.

Every process has a thread that writes a heartbeat into the launcher's store: how far the main
thread has come, and what it is at. Rank 0's thread reads those of all, the others read that of
rank 0, so that a beat costs the store one message a process. Who fails, or finds another silent,
claims the end of the run in the store; the first claim alone is printed, and every thread that
reads it ends its process with the exit code of the claim. It ends it by `os._exit`: the main thread
may wait for ever in a collective, and leaving the process group waits for the others, too.

The store lies in the launcher or, without one, in rank 0. Where that process is stopped, a call to
the store never returns: a third thread, which calls nothing, ends the process then.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NoReturn

from torch._C._distributed_c10d import Store  # torch.distributed exports it, its types do not

from dali_rsb.errors import UserError
from dali_rsb.run.signals import Stopped

BEAT_S = 0.5
# After an error, this long for a claim of the process that caused it: where a process dies, the
# others see closed connections.
GRACE_S = 4.0
# The launcher terminates all processes when one has ended. Whoever has a reason says it before.
TERMINATE_S = 10.0
# Reading a folder of millions of images takes this long on slow storage, at most.
SCAN_TIMEOUT_S = 3600.0

_END = "end"


@dataclass(frozen=True)
class Claim:
    """Why a run ends.

    Attributes:
        rank: whose claim it is.
        text: what is printed, "rank N: ..." of the rank that is to blame.
        exit_code: of all processes.
    """

    rank: int
    text: str
    exit_code: int


@dataclass
class _Heard:
    """What one process knows of another.

    Attributes:
        beat_s, step_s: when its thread last beat, and its main thread last came on.
    """

    beat: int = -1
    step: int = -1
    patience_s: float = 0.0
    activity: str = "its start"
    beat_s: float = field(default_factory=time.monotonic)
    step_s: float = field(default_factory=time.monotonic)


class Watch:
    """The heartbeat of this process, and its ear for those of others.

    Args:
        main_store, thread_store: two connections to the store that all processes share, for the
            main thread and for the heartbeat's: a waiting call keeps a connection to itself.
        rank, world_size: of this process.
        timeout_s: so long may a process be silent.
    """

    def __init__(
        self,
        main_store: Store,
        thread_store: Store,
        rank: int,
        world_size: int,
        timeout_s: float,
    ) -> None:
        self._main_store, self._thread_store = main_store, thread_store
        self._rank, self._world_size = rank, world_size
        self._timeout_s = self._patience_s = timeout_s
        self._step = 0
        self._activity: Callable[[], str] = lambda: "its start"
        self._failing = threading.Event()
        self._ending = threading.Lock()
        self._left = threading.Event()
        self._terminated_s: float | None = None
        others = range(1, world_size) if rank == 0 else (0,)
        self._heard = {other: _Heard() for other in others}
        self._own = _Heard()
        self._turns = 0  # of the heartbeat's thread
        self._thread = threading.Thread(target=self._beat_on, name="heartbeat", daemon=True)
        self._guard = threading.Thread(target=self._guard_on, name="guard", daemon=True)

    def start(self) -> None:
        """Begin to beat and to listen."""
        self._beat(0)
        self._thread.start()
        self._guard.start()

    def note(self, activity: Callable[[], str] | None = None) -> None:
        """Say that this process comes on, and what it turns to now, where that is another thing."""
        if activity is not None:
            self._activity = activity
        self._step += 1

    @contextmanager
    def patient(self, timeout_s: float) -> Iterator[None]:
        """Allow a block to take longer than the others' time-out."""
        self._patience_s = max(timeout_s, self._timeout_s)
        try:
            yield
        finally:
            self._patience_s = self._timeout_s
            self._step += 1

    def wait_for(self, key: str) -> None:
        """Wait until another process announces `key`; however long, as long as all live."""
        while not self._main_store.check([key]):
            time.sleep(BEAT_S / 5)

    def announce(self, key: str) -> None:
        """Let those go on that wait for `key`."""
        self._main_store.set(key, "1")

    def leave(self) -> None:
        """End the heartbeat, with nothing to say."""
        self._left.set()
        self._thread.join()
        self._guard.join()

    def terminated(self, number: int, frame: FrameType | None) -> None:
        """Handler of SIGTERM outside the training, where a signal asks to save: end, but say why.

        A launcher sends it when another process has died, perhaps before this one can tell.
        """
        if self._terminated_s is None:
            self._terminated_s = time.monotonic()

    def stop(self, stopped: Stopped) -> NoReturn:
        """End all processes, for a signal has ended this one where there is nothing to save."""
        self._failing.set()
        name = signal.Signals(stopped.signal).name
        text = f"rank {self._rank}: stopped by {name}"
        self._end(self._main_store, text, stopped.exit_code)

    def fail(self, error: BaseException) -> NoReturn:
        """End all processes for an error of this one."""
        self._failing.set()
        is_mistake = isinstance(error, UserError)
        if is_mistake:
            text = f"error: rank {self._rank}: {error}"
        else:
            lines = "".join(traceback.format_exception(error))
            text = f"{lines}rank {self._rank}: {type(error).__name__}: {error}"
            if isinstance(error, KeyboardInterrupt):
                text = f"rank {self._rank}: interrupted"
            elif lost := self._lost_ranks():
                text = f"{lost}; then rank {self._rank} met {type(error).__name__}: {error}"
        code = 130 if isinstance(error, KeyboardInterrupt) else 2 if is_mistake else 1
        self._end(self._main_store, text, code)

    def _lost_ranks(self) -> str:
        """Wait for the process that caused an error to say so, or find out which one is dead."""
        try:
            before = self._beats(self._main_store)
            deadline_s = time.monotonic() + GRACE_S
            while time.monotonic() < deadline_s:
                self._obey(self._main_store)
                time.sleep(BEAT_S / 5)
            after = self._beats(self._main_store)
        except RuntimeError:  # the store died, and with it who keeps it
            return f"{self._store_keeper()}: died without a word (killed, out of memory?)"
        dead = [rank for rank in before if after[rank]["beat"] == before[rank]["beat"]]
        return "; ".join(
            f"rank {rank}: died without a word (killed, out of memory?) at "
            f"{after[rank]['activity']}"
            for rank in dead
            if rank != self._rank
        )

    def _store_keeper(self) -> str:
        """The process that the store lies in."""
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            return "the launcher"
        return "rank 0"

    def _beats(self, store: Store) -> dict[int, dict[str, Any]]:
        ranks = [rank for rank in range(self._world_size) if store.check([_key(rank)])]
        return {rank: json.loads(store.get(_key(rank))) for rank in ranks}

    def _beat_on(self) -> None:
        beat = 0
        store_lost_s: float | None = None
        while not (self._left.wait(BEAT_S) or self._ending.locked()):
            beat += 1
            self._turns += 1
            try:
                self._beat(beat)
                self._obey(self._thread_store)
                if not self._failing.is_set():
                    self._listen()
                store_lost_s = None
            except RuntimeError:  # what the store throws where its host is gone
                store_lost_s = store_lost_s or time.monotonic()
                if time.monotonic() - store_lost_s > TERMINATE_S and not self._left.is_set():
                    self._say(f"rank {self._rank}: the launcher, or rank 0, is gone; ending")
                    _exit(1)
            since_s = self._terminated_s
            if since_s and time.monotonic() - since_s > TERMINATE_S:
                _exit(128 + signal.SIGTERM)
        if not self._ending.locked():
            with suppress(RuntimeError):  # the others, and the store, may have gone before
                self._thread_store.set(_key(self._rank), _message(-1, self._step, 0, "its end"))

    def _guard_on(self) -> None:
        """End this process if its heartbeat hangs in a call to the store.

        Counts its own turns, not the clock, which goes on while all processes are stopped together.
        """
        patience_s = self._timeout_s + 2 * GRACE_S  # longer than saying why a run ends
        turns, waited_s = 0, 0.0
        while not self._left.wait(BEAT_S):
            waited_s = 0.0 if self._turns != turns else waited_s + BEAT_S
            turns = self._turns
            if waited_s > patience_s:
                self._say(
                    f"{self._store_keeper()}: does not answer for {waited_s:g} s, longer than "
                    f"run.timeout={self._timeout_s:g}; rank {self._rank} ends"
                )
                self._dump()
                _exit(1)

    def _beat(self, beat: int) -> None:
        own = self._own
        if self._step != own.step:
            own.step_s, own.step, own.activity = time.monotonic(), self._step, self._described()
        own.patience_s = self._patience_s
        message = _message(beat, own.step, own.patience_s, own.activity)
        self._thread_store.set(_key(self._rank), message)

    def _described(self) -> str:
        """What the main thread is at; it may change while it is described."""
        try:
            return self._activity()
        except Exception as error:  # no reason to fall silent, which ends the run
            return f"something that {type(error).__name__} keeps it from naming"

    def _listen(self) -> None:
        """Look for processes that are silent."""
        now_s = time.monotonic()
        beats = self._beats(self._thread_store) if self._rank == 0 else self._beat_of_first()
        for rank, heard in self._heard.items():
            if rank not in beats:
                continue
            said = beats[rank]
            if said["beat"] == -1:  # it has left
                heard.beat_s = heard.step_s = float("inf")
                continue
            if said["beat"] != heard.beat:
                heard.beat, heard.beat_s = said["beat"], now_s
            if said["step"] != heard.step:
                heard.step, heard.step_s = said["step"], now_s
            heard.activity, heard.patience_s = said["activity"], said["patience_s"]
        for rank, heard in self._heard.items():
            if now_s - heard.beat_s > self._timeout_s:
                self._end_silent([rank], heard)
        if self._rank == 0:
            self._look_for_standstill(now_s)

    def _beat_of_first(self) -> dict[int, dict[str, Any]]:
        key = _key(0)
        store = self._thread_store
        return {0: json.loads(store.get(key))} if store.check([key]) else {}

    def _look_for_standstill(self, now_s: float) -> None:
        """Does no process come on? One of them keeps the others waiting: it has come least far."""
        everyone = {0: self._own, **self._heard}
        patience_s = max(heard.patience_s for heard in everyone.values())
        if any(now_s - heard.step_s <= patience_s for heard in everyone.values()):
            return
        least = min(heard.step for heard in everyone.values())
        behind = [rank for rank, heard in everyone.items() if heard.step == least]
        self._end_silent(behind, everyone[behind[0]])

    def _end_silent(self, ranks: list[int], heard: _Heard) -> NoReturn:
        beats = heard is self._own or time.monotonic() - heard.beat_s < GRACE_S / 2
        what = "does not come on" if beats else "does not answer"
        names = ", ".join(map(str, ranks))
        self._end(
            self._thread_store,
            f"rank {names}: {what} for {self._timeout_s:g} s (run.timeout), last at "
            f"{heard.activity}",
            1,
            dump=True,
        )

    def _obey(self, store: Store) -> None:
        """End this process if another has claimed the end of all."""
        if store.check([_END]):
            claim = Claim(**json.loads(store.get(_END)))
            if claim.rank != self._rank:
                self._follow(claim)

    def _follow(self, claim: Claim) -> NoReturn:
        if claim.exit_code == 1 and not self._failing.is_set():
            self._dump()
        if self._rank == 0:
            time.sleep(3 * BEAT_S)  # the store may live here, and others have not heard yet
        _exit(claim.exit_code)

    def _end(self, store: Store, text: str, exit_code: int, dump: bool = False) -> NoReturn:
        """Claim the end; print the reason if the claim is the first."""
        self._ending.acquire()  # of this process's two threads, too, only one
        claim = Claim(self._rank, text, exit_code)
        try:
            agreed = Claim(**json.loads(store.compare_set(_END, "", json.dumps(vars(claim)))))
        except RuntimeError:  # without a store nobody else can say it
            agreed = claim
        if agreed.rank != self._rank:
            self._follow(agreed)
        self._say(agreed.text)
        if dump:
            self._dump()
        time.sleep(3 * BEAT_S)  # until all have heard; the launcher kills them when one is gone
        _exit(agreed.exit_code)

    def _dump(self) -> None:
        """Show where all threads of this process stand."""
        self._say(f"rank {self._rank}: at {self._own.activity}; its threads:")
        faulthandler.dump_traceback(all_threads=True)

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def _key(rank: int) -> str:
    return f"beat/{rank}"


def _message(beat: int, step: int, patience_s: float, activity: str) -> str:
    return json.dumps({"beat": beat, "step": step, "patience_s": patience_s, "activity": activity})


def _exit(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)
