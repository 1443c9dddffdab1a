"""The console script: `dali-rsb COMMAND ...` stands for `python -m dali_rsb.COMMAND ...`."""

from __future__ import annotations

import importlib
import sys

from dali_rsb import __version__
from dali_rsb.errors import UserError, run_command, suggestion

# Every command and what it does, in the order in which a newcomer meets them.
COMMANDS = {
    "train": "train a model by a configuration, or resume a run",
    "finetune": "go on from any weights on images of your own",
    "sweep": "train several seeds, and two values of a key, and compare them",
    "evaluate": "accuracy of weights, several at once, on any labelled images",
    "export": "take a model to timm, the Hugging Face hub, ONNX or torch.export",
    "average": "average the weights of several checkpoints",
    "gradcam": "where in an image several networks see what they say",
    "report": "one HTML page of one or more runs, to read and to send",
    "tune": "find the fastest settings of the loader for this machine and images",
    "pack": "put a dataset into a few large tar files",
    "verify": "decode a dataset once and list what is wrong with it",
    "doctor": "check this machine: driver, builds, decoders, CPUs, storage",
    "preview": "what a run would train on: its first images, and what is wrong",
    "replay": "the images of any past update, as the model saw them",
    "seen": "every update that used an image, and how",
    "help": "the keys of a configuration and what they mean",
    "diff": "in which keys two configurations, runs or recipes differ",
    "parity": "compare the pixels with Pillow's and timm's, on your own images",
}


def script() -> None:
    """What the installed `dali-rsb` calls."""
    run_command(main)


def main() -> None:
    """Run the command that the first argument names; list the commands without one.

    Raises:
        UserError: there is no such command, or the command's own mistake of a user.
    """
    name, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("--help", [])
    if name in ("-h", "--help"):
        print(usage())
        return
    if name == "--version":
        print(f"dali_rsb {__version__}")
        return
    if name not in COMMANDS:
        raise UserError(
            f"unknown command {name!r}{suggestion(name, COMMANDS)} `dali-rsb --help` lists them"
        )
    sys.argv = [f"dali-rsb {name}", *arguments]
    importlib.import_module(f"dali_rsb.{name}").main()


def usage() -> str:
    """The list of commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        ["usage: dali-rsb COMMAND ...", "", *lines, "", "`dali-rsb COMMAND --help` says more."]
    )


if __name__ == "__main__":
    script()
