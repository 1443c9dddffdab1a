"""Carries out the members of a sweep, each in a process of its own, and remembers the finished."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from dali_rsb.errors import UserError
from dali_rsb.run.records import EpochRow
from dali_rsb.run.signals import SIGNALS, Stopped
from dali_rsb.run.trackers.csv_file import read_epochs
from dali_rsb.sweeps.members import Member
from dali_rsb.system.atomic import atomic_file

logger = logging.getLogger(__name__)

# In the folder of a run that came to its end: its last epoch.
_RESULT = "result.json"
# In the folder of the sweep: the configuration of all its runs.
_CONFIG = "configuration.json"


class Child(Protocol):
    """The process of a run."""

    def wait(self) -> int:
        """Its exit code, negative for a signal that ended it."""

    def send_signal(self, number: int) -> None:
        """Pass a signal on to it."""


def start_training(config: str, overrides: Sequence[str], processes: int = 1) -> Child:
    """Start or resume the training of a configuration.

    Args:
        config: as the train command takes it.
        overrides: of the configuration, the run folder among them.
        processes: of the run, one a device; several are started by torchrun.
    """
    launcher = [sys.executable, "-m"]
    if processes > 1:
        launcher += ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        launcher += ["--signals_to_handle=SIGTERM,SIGINT,SIGUSR1", "-m"]
    command = [*launcher, "dali_rsb.train", config, *overrides, "--resume", "auto"]
    return subprocess.Popen(command)


def check_same_sweep(folder: Path, config: Mapping[str, Any], varied: str | None) -> None:
    """Note the configuration in a sweep's folder, or compare it with what stands there.

    Args:
        config: of the sweep, as plain values; what its members set for themselves does not count.
        varied: section.key of what is varied, or None.

    Raises:
        UserError: the folder holds a sweep of another configuration, or cannot be written.
    """
    own = {key: value for key, value in _flat(config) if key not in ("run.seed", "run.dir", varied)}
    content = {"varied": varied, "config": own}
    path = folder / _CONFIG
    try:
        folder.mkdir(parents=True, exist_ok=True)
        before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be used ({error}); give another --output") from error
    if before is None:
        write_json(path, content)
    elif before != content:
        theirs = {"--vary": before.get("varied"), **before.get("config", {})}
        ours = {"--vary": varied, **own}
        key = next((key for key in ours if ours[key] != theirs.get(key)), "another key")
        raise UserError(
            f"{folder} holds a sweep with other values of {key}; give another --output, or remove "
            "that folder"
        )


def _flat(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for section, keys in config.items():
        for key, value in keys.items() if isinstance(keys, dict) else ():
            yield f"{section}.{key}", value


def carry_out(
    members: Sequence[Member], config: str, overrides: Sequence[str], processes: int = 1
) -> list[Member]:
    """Run or resume members one after the other; those that are finished are left alone.

    Args:
        config: of the sweep, as the train command takes it.
        overrides: of the sweep's configuration; those of a member come behind them.
        processes: of each run.

    Returns:
        Those that failed; their own output says why.

    Raises:
        Stopped: a signal asked to stop; the run under way has saved what it did.
    """
    failed = []
    for number, member in enumerate(members, 1):
        place = f"run {number}/{len(members)}: {member.label}"
        if read_result(member) is not None:
            logger.info("%s: finished before", place)
            continue
        logger.info("%s -> %s", place, member.folder)
        child = start_training(config, [*overrides, *member.overrides], processes)
        with _signals_for(child) as received:
            code = child.wait()
        if received:
            raise Stopped(received[0])
        if code < 0:  # killed, as by a lack of memory: the next one would fare no better
            raise Stopped(-code)
        if code:
            logger.warning("%s failed with exit code %d; its output says why", member.label, code)
            failed.append(member)
        else:
            _write_result(member)
    return failed


def read_result(member: Member) -> EpochRow | None:
    """The last epoch of a run that is finished, else None."""
    path = member.folder / _RESULT
    try:
        return EpochRow(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _write_result(member: Member) -> None:
    rows = read_epochs(member.folder)
    if not rows:
        logger.warning("%s has no epoch in its metrics.csv; it is not counted", member.label)
        return
    write_json(member.folder / _RESULT, asdict(rows[-1]))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, whole or not at all."""
    with atomic_file(path) as file:
        file.write((json.dumps(value, indent=2) + "\n").encode())


@contextmanager
def _signals_for(child: Child) -> Iterator[list[int]]:
    """Pass signals on to a child instead of dying of them; they are noted in what is yielded."""
    received: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        received.append(number)
        # Ctrl-C reaches the child by itself, and a second one would interrupt its saving.
        if number != signal.SIGINT:
            child.send_signal(number)

    previous = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
