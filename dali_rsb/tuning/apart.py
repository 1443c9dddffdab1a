"""Measures loaders in processes of their own: one for each way to decode.

A decoder of the GPU may end its process by a segmentation fault. Here that ends one candidate of a
search, not the search.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from typing import Literal, TypeAlias

from dali_rsb.errors import UserError
from dali_rsb.loader.settings import DecodeSetting, LoaderSettings
from dali_rsb.tuning.search import LoaderDiedError, LoaderRate

Measure: TypeAlias = Callable[[LoaderSettings], LoaderRate]

# From a measurement's beginning to its end; building a pipeline takes seconds.
TIMEOUT_S = 300.0


class MeasureApart:
    """A measurement for `Search`, made in one process for each way to decode.

    Args:
        build: makes the measurement; called in each process, so it can be pickled.
        timeout_s: a process that does not answer for so long counts as dead.
        start_method: of multiprocessing; a fork would inherit a GPU's context, which is unusable.
    """

    def __init__(
        self,
        build: Callable[[], Measure],
        timeout_s: float = TIMEOUT_S,
        start_method: Literal["spawn", "forkserver"] = "spawn",
    ) -> None:
        self._build = build
        self._timeout_s = timeout_s
        self._context: SpawnContext | ForkServerContext
        if start_method == "spawn":
            self._context = multiprocessing.get_context("spawn")
        else:
            self._context = multiprocessing.get_context("forkserver")
        self._children: dict[DecodeSetting, tuple[BaseProcess, Connection]] = {}
        self._deaths: dict[DecodeSetting, str] = {}

    def __call__(self, settings: LoaderSettings) -> LoaderRate:
        """The rate with some settings.

        Raises:
            LoaderDiedError: this way to decode ended its process, now or before.
            UserError: what the measurement raises.
        """
        if settings.decode in self._deaths:
            raise LoaderDiedError(self._deaths[settings.decode])
        process, connection = self._child(settings.decode)
        try:
            connection.send(settings)
            if not connection.poll(self._timeout_s):
                raise EOFError
            answer = connection.recv()
        except (EOFError, OSError):
            raise LoaderDiedError(self._bury(settings.decode, process)) from None
        if isinstance(answer, LoaderRate):
            return answer
        if isinstance(answer, UserError):
            raise answer
        self._deaths[settings.decode] = str(answer)
        raise LoaderDiedError(str(answer))

    def close(self) -> None:
        """End the processes."""
        for process, connection in self._children.values():
            connection.close()
            process.join(10)
            if process.is_alive():
                process.kill()
        self._children.clear()

    def _child(self, decode: DecodeSetting) -> tuple[BaseProcess, Connection]:
        if decode not in self._children:
            ours, theirs = self._context.Pipe()
            process = self._context.Process(target=_serve, args=(self._build, theirs), daemon=True)
            process.start()
            theirs.close()
            self._children[decode] = process, ours
        return self._children[decode]

    def _bury(self, decode: DecodeSetting, process: BaseProcess) -> str:
        process.join(1)
        if process.exitcode is None:
            process.kill()
            reason = f"no answer within {self._timeout_s:.0f} s"
        elif process.exitcode < 0:
            reason = f"its process ended by {signal.Signals(-process.exitcode).name}"
        else:
            reason = f"its process ended with exit code {process.exitcode}"
        self._deaths[decode] = reason
        return reason


def _serve(build: Callable[[], Measure], connection: Connection) -> None:
    """Measure what comes through a connection until it is closed."""
    measure: Measure | None = None
    while True:
        try:
            settings = connection.recv()
        except (EOFError, KeyboardInterrupt):
            return
        answer: LoaderRate | UserError | str
        try:
            measure = measure or build()
            answer = measure(settings)
        except UserError as error:
            answer = error
        except Exception as error:  # whatever DALI raises; the candidate is out, with this reason
            answer = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
        connection.send(answer)
