"""How an update of a run was made: its configuration, processes and batches, from the run folder.

The one part of this room that sees a whole configuration.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from dali_rsb import config as cfg
from dali_rsb.constants import PAIR_BLOCK
from dali_rsb.errors import UserError
from dali_rsb.pictures.loading import CPU, open_samples
from dali_rsb.run.checkpoint import load_checkpoint
from dali_rsb.run.checkpointer import newest_intact
from dali_rsb.run.processes import Processes
from dali_rsb.run.sessions import SESSIONS, Position, Session, digest_of, read_sessions
from dali_rsb.system.files import read_text
from dali_rsb.system.names import printable
from dali_rsb.training.assembly import begin, device_batch

# What may be other than in the run: where the images lie, not which they are.
MOVABLE = ("data.train", "data.index", "data.digits", "data.exclude", "data.threads")
_CHANGED_CONFIG = re.compile(r"config-\d+\.yaml")


@dataclass(frozen=True)
class Past:
    """How some updates of a run were made.

    Attributes:
        folder: of the run.
        config: of these updates, for a CPU.
        session: of the run that made them.
        config_name: of its file in the folder.
        notes: lines on what could not be known for certain.
    """

    folder: Path
    config: cfg.Config
    session: Session
    config_name: str = "config.yaml"
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What messages call the run."""
        return printable(self.folder, 100)

    @property
    def num_epochs(self) -> int:
        return self.config.schedule.epochs


def add_past_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a command that looks into a run's past the options that all of them take."""
    parser.add_argument(
        "--changed",
        action="store_true",
        help="take images as they are now, where they have changed since the run",
    )
    parser.add_argument(
        "--world-size", type=int, metavar="N", help="processes, if the run folder does not say"
    )


def open_past(
    folder: Path, world_size: int | None = None, overrides: Sequence[str] = ()
) -> list[Past]:
    """The sessions of a run, oldest first, each with the configuration that it had.

    Args:
        folder: of the run.
        world_size: number of processes, where the run folder does not say it.
        overrides: `section.key=value` of `MOVABLE` keys.

    Raises:
        UserError: it is no run folder, the number of processes is not known or another, or
            another key is to be changed.
    """
    for override in overrides:
        if override.partition("=")[0] not in MOVABLE:
            raise UserError(
                f"{override:.80}: a run is replayed as it was; only {', '.join(MOVABLE)} may differ"
            )
    if not (folder / "config.yaml").is_file():
        raise UserError(
            f"{printable(folder, 130)} is no run folder, it holds no config.yaml; give the folder "
            "of a run, such as runs/a3"
        )
    sessions = read_sessions(folder)
    if not sessions:
        return [_without_sessions(folder, world_size, overrides)]
    for session in sessions:
        if world_size not in (None, session.world_size):
            raise UserError(
                f"--world-size {world_size}: {printable(folder / SESSIONS, 130)} says that the "
                f"run had {session.world_size}; leave the option out"
            )
    names = {digest_of(read_text(path, "restore it")): path.name for path in _configs(folder)}
    pasts = []
    for session in sessions:
        name = names.get(session.config_digest or "")
        if name is None:
            raise UserError(
                f"{printable(folder, 130)}: none of its config*.yaml is that of the session from "
                f"epoch {session.first[0] + 1}, update {session.first[1] + 1}; restore it as the "
                "run wrote it"
            )
        pasts.append(Past(folder, _config(folder / name, overrides), session, name))
    return pasts


def upcoming(config: cfg.Config, num_images: int) -> Past:
    """A run that has not begun, as one process on a CPU would make its updates.

    Args:
        num_images: of a device batch, about; what is drawn does not depend on it.

    Raises:
        UserError: the run could not begin with this configuration.
    """
    processes = Processes(CPU)
    config = begin(_on_cpu(config), processes)[0]
    device_batch(config, processes)
    whole_blocks = -(-num_images // PAIR_BLOCK) * PAIR_BLOCK
    session = Session(
        world_size=1,
        device="cpu",
        global_batch=config.optimizer.batch_size,
        batch_per_device=min(whole_blocks, config.optimizer.batch_size),
        by_kernels=config.augment.backend != "dali",
        started_s=None,
    )
    return Past(config.run.dir or Path(config.name), config, session)


def past_of(pasts: Sequence[Past], update: int, epoch: int | None = None) -> tuple[Past, Position]:
    """The session that made an update last, and the update's position.

    Args:
        pasts: of `open_past`.
        update: number in all, from 1; with `epoch` that in the epoch.
        epoch: from 1, or None.

    Raises:
        UserError: the run has no such update.
    """
    if update < 1 or (epoch is not None and epoch < 1):
        raise UserError("--update and --epoch count from 1; give 1 or more")
    last = pasts[-1]
    for past in reversed(pasts):
        per_epoch = past.session.updates_per_epoch
        position = past.session.position(update)
        if epoch is not None:
            position = (epoch - 1, update - 1)
            if update > per_epoch:
                continue
        if position[0] < past.num_epochs and (position >= past.session.first or past is pasts[0]):
            return past, position
    per_epoch, epochs = last.session.updates_per_epoch, last.num_epochs
    raise UserError(
        f"{last.name} has {epochs} epochs of {per_epoch:,} updates, {epochs * per_epoch:,} in all; "
        "give --update within these"
    )


def numbered(past: Past, position: Position) -> int:
    """An update's number in all, from 1, as its session counts."""
    return position[0] * past.session.updates_per_epoch + position[1] + 1


def _config(path: Path, overrides: Iterable[str]) -> cfg.Config:
    """A run's configuration, for a CPU."""
    return _on_cpu(cfg.load_config(path, list(overrides)))


def _on_cpu(config: cfg.Config) -> cfg.Config:
    if config.augment.backend == "auto":
        return config
    return cfg.with_values(config, {"augment.backend": "auto"})


def _configs(folder: Path) -> list[Path]:
    """The configurations that a run has had."""
    earlier = [path for path in folder.iterdir() if _CHANGED_CONFIG.fullmatch(path.name)]
    return [*earlier, folder / "config.yaml"]


def _without_sessions(folder: Path, world_size: int | None, overrides: Sequence[str]) -> Past:
    """A run without sessions.jsonl, from its checkpoint, or from what the user says."""
    if len(_configs(folder)) > 1:
        raise UserError(
            f"{printable(folder, 100)} has several configurations and no {SESSIONS} that says "
            "which update had which; copy the one you want as config.yaml into a folder of its "
            "own, and replay that with --world-size"
        )
    config = _config(folder / "config.yaml", overrides)
    notes = [f"no {SESSIONS}: changes of the images since the run cannot be noticed"]
    device = "cpu" if config.run.device == "cpu" else "cuda"
    checkpoint = newest_intact(folder)
    state = {} if checkpoint is None else load_checkpoint(checkpoint)
    if world_size is None:
        if checkpoint is None:
            raise UserError(
                f"{printable(folder, 130)} has neither {SESSIONS} nor a checkpoint that says how "
                "many processes the run had; give --world-size"
            )
        world_size = len(state.get("ranks", ())) or 1
        of_devices = str(state.get("environment", {}).get("devices", device))
        device = "cpu" if of_devices.lower().endswith("cpu") else "cuda"
    if config.run.batch_per_device is None and device == "cuda":
        notes.append("the batch of a device is not known for certain: it depends on the GPU")
    processes = Processes(torch.device(device), world_size=world_size)
    batch = device_batch(config, processes)
    session = Session(
        world_size=world_size,
        device=device,
        global_batch=config.optimizer.batch_size,
        batch_per_device=batch,
        started_s=None,
    )
    per_epoch = open_samples(config, session).updates_per_epoch
    last = divmod(state.get("updates_done", 0), state.get("updates_per_epoch", per_epoch))
    session = replace(session, updates_per_epoch=per_epoch, last=last)
    return Past(folder, config, session, notes=tuple(notes))
