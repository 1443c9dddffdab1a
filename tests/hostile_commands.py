"""Words for every command that no one would give it on purpose, from a seed.

    python tests/hostile_commands.py EACH SEED [COMMAND ...]

tries so many for each command and prints what does not end as it should.

A command begins with words that work; some are then left out, doubled or replaced, and any of its
own options, which its `--help` names, gets any value. Nothing here needs a network or a week.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import random
import re
import shutil
import sys
import tempfile
from pathlib import Path

import yaml
from hostile_configs import BASE
from hostile_runs import Task, outcomes, sweep, write_images

from dali_rsb.__main__ import COMMANDS

_RUN = [
    *("model.name=timm:test_resnet", "run.device=cpu", "run.max_steps=1", "optimizer.batch_size=8"),
    *("data.val=images/val", "augment.size=32", "evaluation.size=32", "schedule.warmup_epochs=0"),
    *("data.threads=1", "run.warm_up=false", "schedule.epochs=1", "run.log_every=1"),
]
WORKING = {
    "train": ["c.yaml", "run.dir=other"],
    "finetune": ["images/train", "--from", "run", "run.dir=tuned", *_RUN],
    "sweep": ["c.yaml", "--seeds", "0", "--output", "swept"],
    "evaluate": ["run", "images/val", "run.device=cpu", "data.threads=1"],
    "export": ["run", "--to", "safetensors"],
    "average": ["run", "run/best.pt", "--output", "mean.pt", "--device", "cpu"],
    "gradcam": ["run", "--images", "images/val", "run.device=cpu"],
    "report": ["run", "--device", "cpu"],
    "tune": ["c.yaml", "--seconds", "0.1"],
    "pack": ["images/train", "packed", "--workers", "1"],
    "verify": ["images/train", "--workers", "1"],
    "doctor": ["images/train"],
    "preview": ["c.yaml", "--images", "4"],
    "replay": ["run", "--update", "1"],
    "seen": ["run", "images/train/a/0.jpg"],
    "help": ["data"],
    "diff": ["c.yaml", "a3"],
    "parity": ["images/train", "--num-images", "2", "--size", "32"],
}
_NETWORK = ("--push", "--private")
_LONG = ("--seconds",)
_WORDS = [
    *("", " ", "-", "--", "-x", "--nope", "nowhere", "nowhere/x", "/dev/null", "/dev/zero", "fifo"),
    *("empty", "empty/x", "notes.txt", "notes.txt/x", "broken", "cut", "c.yaml", "images", "run"),
    *("x" * 300, "x" * 5000, "x " * 2000, "é", "a\nb", "\udcff", "\x1b[31m", "/proc/self/mem"),
    *(
        "nan",
        "inf",
        "-1",
        "0",
        "1e999",
        "9" * 400,
        "0x10",
        "1,2",
        "0-3",
        "3-0",
        "a=b",
        "=",
        "[",
        "*",
    ),
    *("optimizer.lr=nan", "data.train=nowhere", "run.device=cuda", "data.nope=1", "{0..9}.tar"),
    *("run/last.pt", "images/train/a/0.jpg", "run/metrics.csv", "images/train", "run.dir=empty"),
]
_VALUES = [*_WORDS, "1", "2", "3", "0.5", "cpu", "ema", "model", "a", "out", "out.json"]


def options_of(command):
    """The long options that a command's `--help` names."""
    sys.argv, text = [command, "--help"], io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        importlib.import_module(f"dali_rsb.{command}").main()
    found = re.findall(r"(?<![\w-])--[a-z][a-z-]+", text.getvalue())
    return sorted(set(found) - {"--help", *_NETWORK})


def command_tasks(each, seed, commands=tuple(COMMANDS)):
    """So many tasks for each command; the first of each is one that works."""
    return [
        Task(f"dali_rsb.{command}", tuple(_words(command, random.Random(f"{seed}/{i}"), i > 0)))
        for command in commands
        for i in range(each)
    ]


def _words(command, rng, is_hostile):
    words = list(WORKING[command])
    if not is_hostile:
        return words
    options = options_of(command)
    for _ in range(rng.choice([1, 1, 2, 3])):
        place = rng.randint(0, max(0, len(words) - 1))
        change = rng.choice(["replace", "drop", "double", "insert", "option", "option"])
        if change == "replace" and words:
            words[place] = rng.choice(_WORDS)
        elif change == "drop" and words:
            del words[place]
        elif change == "double" and words:
            words.insert(place, words[place])
        elif change == "option" and options:
            option = rng.choice(options)
            value = "0.1" if option in _LONG else rng.choice(_VALUES)
            words += rng.choice([[option, value], [f"{option}={value}"], [option]])
        else:
            words.insert(place, rng.choice(_WORDS))
    return words


def write_template(folder):
    """Images, a run, and what is left of runs and files by accidents."""
    write_images(folder / "images")
    (folder / "c.yaml").write_text(yaml.safe_dump(BASE))
    made = folder.with_name("made")
    (result,) = outcomes([Task("dali_rsb.train", ("c.yaml",))], folder, keep=made)
    assert result.what == "answered", result
    shutil.copytree(made / "run", folder / "run")
    for name, damage in (("broken", b"\xff\0{"), ("cut", None)):
        shutil.copytree(made / "run", folder / name)
        for file in (folder / name).iterdir():
            if file.is_file():
                data = file.read_bytes()
                file.write_bytes(data[: len(data) // 2] if damage is None else damage)
    (folder / "empty").mkdir()
    (folder / "notes.txt").write_text("nothing\nto\tsee\n")
    return folder


def main():
    each, seed, *commands = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="h") as root:
        template = write_template(Path(root) / "t")
        print(dict(sweep(command_tasks(int(each), seed, commands or COMMANDS), template)))


if __name__ == "__main__":
    main()
