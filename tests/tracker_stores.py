"""Reads back what tracking services were given, from their own local files."""

import io
import json
import sqlite3
import struct
from collections import defaultdict
from pathlib import Path

from PIL import Image

# What differs between two runs of the same content.
TIMES = ("img_per_s", "data_wait_percent")


def without_times(series):
    """The same series; of what depends on the machine's speed only where its points are."""
    return {
        name: [images for images, _ in points] if name.endswith(TIMES) else points
        for name, points in series.items()
    }


def tensorboard_series(folder):
    """(images, value) of each scalar in a run folder's event files, and the texts by name."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # No limit of points; a limit would sample them.
    events = EventAccumulator(str(folder / "tensorboard"), {"scalars": 0, "tensors": 0}).Reload()
    series = {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }
    texts = {
        name.removesuffix("/text_summary"): events.Tensors(name)[0]
        .tensor_proto.string_val[0]
        .decode()
        for name in events.Tags()["tensors"]
    }
    return series, texts


def tensorboard_pictures(folder):
    """The pictures of a folder's event files by their names, and its one text."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), {"images": 0, "tensors": 0}).Reload()
    pictures = {
        name: Image.open(io.BytesIO(events.Images(name)[0].encoded_image_string))
        for name in events.Tags()["images"]
    }
    (text,) = events.Tags()["tensors"]
    return pictures, events.Tensors(text)[0].tensor_proto.string_val[0].decode()


def wandb_table(folder, name):
    """Columns and rows of the one table of a name in offline files; its pictures are opened."""
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    files = {
        entry.path: entry.local_path
        for record in _wandb_records(path)
        for entry in record.artifact.manifest.contents
    }
    table = json.loads(Path(files[f"{name}.table.json"]).read_text())
    rows = [
        [Image.open(files[cell["path"]]) if isinstance(cell, dict) else cell for cell in row]
        for row in table["data"]
    ]
    return table["columns"], rows


def wandb_records(folder, run_id):
    """The records of a run's offline files, which must be one."""
    (path,) = folder.glob(f"wandb/offline-run-*-{run_id}/run-{run_id}.wandb")
    return _wandb_records(path)


def _wandb_records(path):
    from wandb.proto.wandb_internal_pb2 import Record

    records = []
    for data in _leveldb_records(path.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        records.append(record)
    return records


def _leveldb_records(content):
    """LevelDB's log: blocks of 32 KiB, of pieces with checksum, length and kind; after a header."""
    assert content[:4] == b":W&B"
    place, whole = 7, b""
    while place + 7 <= len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        if kind == 0:
            break
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # all of a record, or its last piece
            yield whole
            whole = b""


def wandb_series(records):
    """(images, value) of each name in a run's history, one line a step."""
    series, steps = defaultdict(list), []
    for record in records:
        if not record.HasField("history"):
            continue
        items = {
            "/".join(item.nested_key) or item.key: json.loads(item.value_json)
            for item in record.history.item
        }
        steps.append(record.history.step.num)
        assert items["images"] == steps[-1]
        for name, value in items.items():
            if not name.startswith("_") and name != "images":
                series[name].append((steps[-1], value))
    assert steps == sorted({*steps})
    return dict(series)


class MlflowRun:
    """The one run of a name in a folder's database, read without MLflow: its import takes seconds.

    Attributes:
        status: as MLflow writes it.
        params, tags: texts by name.
        series: (images, value) of each metric.
        artifacts: folder of the run's artifacts.
    """

    def __init__(self, folder, name):
        with sqlite3.connect(folder / "mlflow.db") as database:
            ((run, self.status, artifacts, self.project),) = database.execute(
                "SELECT run_uuid, status, artifact_uri, experiments.name FROM runs"
                " JOIN experiments USING (experiment_id)"
                " WHERE runs.name = ? AND runs.lifecycle_stage = 'active'",
                (name,),
            )
            self.params, self.tags = (
                dict(database.execute(f"SELECT key, value FROM {table} WHERE run_uuid = ?", (run,)))
                for table in ("params", "tags")
            )
            self.series = defaultdict(list)
            for key, step, value in database.execute(
                "SELECT key, step, value FROM metrics WHERE run_uuid = ? ORDER BY step", (run,)
            ):
                self.series[key].append((step, value))
        self.artifacts = Path(artifacts.removeprefix("file://"))


def trackio_series(folder, project, run_prefix):
    """(images, value) of each name of the one run whose name begins so, from Trackio's database."""
    with sqlite3.connect(folder / "trackio" / f"{project}.db") as database:
        rows = database.execute(
            "SELECT run_name, step, metrics FROM metrics WHERE run_name LIKE ? ORDER BY id",
            (f"{run_prefix}-%",),
        ).fetchall()
    assert len({name for name, _, _ in rows}) == 1
    series = defaultdict(list)
    for _, step, text in rows:
        for name, value in json.loads(text).items():
            if name != "images":
                series[name].append((step, value))
    return dict(series)
