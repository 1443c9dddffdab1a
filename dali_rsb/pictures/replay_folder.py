"""What `dali-rsb replay` writes: pictures of an update's rows, replay.json and replay.html."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from dali_rsb.errors import UserError
from dali_rsb.pictures.folder import picture_folder, write_json
from dali_rsb.pictures.page import Block, Facts, Gallery, Page, Picture, Section, Text
from dali_rsb.pictures.past import numbered
from dali_rsb.pictures.replaying import ReplayedBatch, Replayer
from dali_rsb.pictures.rows import mixing_text, operation_text
from dali_rsb.pictures.stages import OVERVIEW_PX, stages
from dali_rsb.run.sessions import Position
from dali_rsb.system.names import printable

JSON, PAGE, TENSORS = "replay.json", "replay.html", "batches.pt"
MAX_ON_PAGE = 32  # rows; the page holds its pictures, so it grows with them


@dataclass(frozen=True)
class Selection:
    """Which rows of an update are written.

    Attributes:
        positions: in the epoch; none for all.
        images: numbers of images; none for all. A row counts if it uses or asks for one.
        tensors: write the batches of all rows too, as the model was given them.
    """

    positions: Sequence[int] = ()
    images: Sequence[int] = ()
    tensors: bool = False

    def rows(self, replayed: ReplayedBatch) -> list[int]:
        """The rows of a batch that are chosen."""
        chosen = np.ones(len(replayed.asked), bool)
        if self.positions:
            chosen &= np.isin(np.asarray(replayed.spec.positions), self.positions)
        if self.images:
            asked = np.isin(replayed.asked, self.images)
            chosen &= asked | np.isin(replayed.spec.indices, self.images)
        return np.flatnonzero(chosen).tolist()


def write_replay(
    replayer: Replayer, position: Position, selection: Selection, target: Path
) -> dict[str, Any]:
    """Write an update into a folder, whole or not at all.

    Returns:
        What replay.json holds.

    Raises:
        UserError: see `Replayer.batches` and `picture_folder`; or nothing of the update is chosen.
    """
    update = numbered(replayer.past, position)
    written: list[dict[str, Any]] = []
    on_page: list[Block] = []
    tensors: list[dict[str, Any]] = []
    layout = replayer.samples.layout
    bar = tqdm(
        total=layout.global_batch, desc="images", leave=False, disable=not sys.stderr.isatty()
    )
    with bar, picture_folder(target, JSON) as folder:
        for replayed in replayer.batches(position):
            if selection.tensors:
                tensors.append(_tensors(replayed))
            if rows := selection.rows(replayed):
                for row, described, pictures in stages(replayer, replayed, rows):
                    entry = _entry(replayer, replayed, row, described)
                    entry["pictures"] = _save(folder, entry["position"], pictures)
                    if len(written) < MAX_ON_PAGE:
                        on_page += _blocks(entry, pictures)
                    written.append(entry)
            bar.update(len(replayed.asked))
        if not written:
            raise UserError(_nothing(replayer, position, selection))
        if tensors:
            torch.save(tensors, folder / TENSORS)
        written.sort(key=lambda entry: int(entry["position"]))
        content = _head(replayer, position) | {"samples": written}
        write_json(folder / JSON, content)
        _page(content, update, on_page).write(folder / PAGE)
    return content


def _head(replayer: Replayer, position: Position) -> dict[str, Any]:
    past, layout = replayer.past, replayer.samples.layout
    session = past.session
    return {
        "run": str(past.folder.absolute()),
        "update": numbered(past, position),
        "epoch": position[0] + 1,
        "update_of_epoch": position[1] + 1,
        "config": past.config_name,
        "seed": past.config.run.seed,
        "device_of_run": session.device,
        "dtype": session.dtype,
        "world_size": session.world_size,
        "batch_per_device": layout.batch_per_device,
        "accumulation": layout.accumulation,
        "without": [replayer.index.name(image) for image in replayer.left_out],
        "notes": notes(replayer),
    }


def notes(replayer: Replayer) -> list[str]:
    """What is not certain, or not to the bit, in a replay."""
    found = list(replayer.past.notes)
    session = replayer.past.session
    if session.device != "cpu":
        found.append(
            "the run was on a GPU: draws, labels and order are its own, pixels differ by the "
            "rounding of the resize"
        )
    if replayer.left_out:
        found.append("not what was trained on: some files were left out")
    return found


def _entry(
    replayer: Replayer, replayed: ReplayedBatch, row: int, described: dict[str, Any]
) -> dict[str, Any]:
    asked = int(replayed.asked[row])
    is_replaced = asked != replayed.spec.indices[row]
    return {
        "rank": replayed.rank,
        "micro_batch": replayed.micro_batch,
        "row": row,
        **described,
        "stands_in_for": replayer.index.name(asked) if is_replaced else None,
        "partner_label": int(replayed.mixed.partner_labels[row]),
        "lam": float(replayed.mixed.lam[row]),
    }


def _tensors(replayed: ReplayedBatch) -> dict[str, Any]:
    mixed = replayed.mixed
    return {
        "rank": replayed.rank,
        "micro_batch": replayed.micro_batch,
        "positions": torch.tensor(list(replayed.spec.positions)),
        "images": mixed.images,
        "labels": mixed.labels,
        "partner_labels": mixed.partner_labels,
        "lam": mixed.lam,
    }


def _save(folder: Path, position: int, pictures: dict[str, Image.Image]) -> dict[str, str]:
    """Write the pictures of a row; returns their paths in the folder, by stage."""
    own = folder / f"position-{position:08d}"
    own.mkdir()
    paths = {}
    for number, (name, picture) in enumerate(pictures.items()):
        path = own / f"{number}-{name}.png"
        picture.save(path, compress_level=1)
        paths[name] = f"{own.name}/{path.name}"
    return paths


def _blocks(entry: dict[str, Any], pictures: dict[str, Image.Image]) -> list[Block]:
    head = (
        f"Position {entry['position']}, rank {entry['rank']}, micro-batch {entry['micro_batch']}: "
        f"{entry['class']}, {printable(entry['file'], 100)}"
    )
    blocks: list[Block] = [Text(head)]
    if entry["stands_in_for"] is not None:
        name = printable(entry["stands_in_for"], 100)
        blocks.append(Text(f"Stands in for {name}, which cannot be used.", "bad"))
    captions = {f"randaugment-{step['layer']}-{step['operation']}": operation_text(step)
                for step in entry["randaugment"]}  # fmt: skip
    window = entry["window"]
    captions["window"] = (
        f"{window['width']} x {window['height']} of {entry['width']} x {entry['height']} px"
    )
    captions["resized"] = f"{entry['filter']}{', mirrored' if entry['mirrored'] else ''}"
    captions["mixed"] = mixing_text(entry) or "not mixed"
    shown = {name: picture for name, picture in pictures.items() if name != "source"}
    gallery = [
        Picture(
            picture,
            f"{name} of position {entry['position']}",
            [captions[name]],
            width_px=min(OVERVIEW_PX, max(128, picture.width)),
            quality=85 if name == "window" else None,
            pixelated=name != "window",
        )
        for name, picture in shown.items()
    ]
    return [*blocks, Gallery(gallery)]


def _page(content: dict[str, Any], update: int, blocks: Sequence[Block]) -> Page:
    written = len(content["samples"])
    facts = Facts(
        [
            ("update", f"{update:,}"),
            ("epoch", str(content["epoch"]), f"update {content['update_of_epoch']} of it"),
            ("processes", str(content["world_size"])),
            ("images", f"{written:,}", f"of device batches of {content['batch_per_device']}"),
        ]
    )
    more = []
    if written > MAX_ON_PAGE:
        more = [Text(f"The first {MAX_ON_PAGE} of {written:,}; the others are in the folder.")]
    first: list[Block] = [facts, *(Text(note, "bad") for note in content["notes"]), *more]
    return Page(
        f"Update {update}",
        f"The images of an update of {printable(content['run'], 100)} as the model saw them.",
        [Section("Update", first), Section("Images", blocks)],
    )


def _nothing(replayer: Replayer, position: Position, selection: Selection) -> str:
    """Why no row is chosen."""
    layout, update = replayer.samples.layout, numbered(replayer.past, position)
    start = position[1] * layout.global_batch
    if selection.images and not selection.positions:
        name = printable(replayer.index.name(selection.images[0]), 100)
        return f"update {update} does not use {name}; dali-rsb seen lists the updates that do"
    return (
        f"update {update} has the positions {start} to {start + layout.global_batch - 1} of epoch "
        f"{position[0] + 1}; give --position among these, and --image of one of them"
    )
