"""The command `dali-rsb export SOURCE --to FORMAT`: take a model out of here.

SOURCE is a run folder (its best checkpoint), a checkpoint, or a file of weights. FORMAT is

  safetensors   weights under timm's names, with classes and preprocessing
  hub           a folder for timm's local-dir: and hf-hub:; --push uploads it
  onnx          a graph with a free batch dimension, for onnxruntime and others
  torch-export  the same for programs with PyTorch alone (torch.export.load)

What was written is reloaded at once and compared with the model on real images; if their logits
differ by more than rounding, nothing stays. Packages: pip install 'dali_rsb[export]'.

    dali-rsb export runs/a3 --to hub --output a3-hub --push me/resnet50-a3
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dali_rsb.config.options import OptionsParser, add_output
from dali_rsb.dataset.classes import read_class_names
from dali_rsb.errors import UserError, run_command
from dali_rsb.run.console import console_messages
from dali_rsb.training.opened_weights import (
    MIN_COMPARED,
    default_preprocessing,
    images_to_compare,
    open_as_asked,
)
from dali_rsb.weights.export.exporting import FORMATS, check_options, export
from dali_rsb.weights.export.pushing import check_push, push
from dali_rsb.weights.export.subject import PREPROCESSING, Subject, completed


def main() -> None:
    arguments = _parser().parse_args()
    name = arguments.to
    if arguments.push is not None and name != "hub":
        raise UserError(f"--push takes --to hub, not --to {name}")
    if arguments.num_images < MIN_COMPARED:
        raise UserError(f"--num-images {arguments.num_images}: give at least {MIN_COMPARED}")
    target = arguments.output or Path(_stem(arguments.source) + FORMATS[name].suffix)
    target = target.absolute()
    check_options(name, target, arguments.with_normalisation, arguments.overwrite)
    if arguments.push is not None:
        check_push(arguments.push)
    with console_messages():
        weights, is_assumed = completed(
            open_as_asked(arguments.source, arguments.weights),
            arguments.model,
            None if arguments.classes is None else read_class_names(arguments.classes),
            default_preprocessing(),
            _given(arguments),
        )
        images, images_are = images_to_compare(weights, arguments.images, arguments.num_images)
        subject = Subject.of(weights, images, images_are, is_assumed)
        difference = export(subject, name, target, arguments.with_normalisation)
    print(f"{target}: {_described(subject, arguments.with_normalisation)}")
    print(
        f"largest difference of its logits from the model's: {difference.largest:.1e} on "
        f"{subject.images_are}\nat most {difference.bound:.1e} is let through"
    )
    if arguments.push is not None:
        print(f"pushed: {push(target, arguments.push, arguments.private)}")


def _parser() -> argparse.ArgumentParser:
    parser = OptionsParser("export", __doc__)
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("--to", choices=FORMATS, required=True, help="the format")
    add_output(parser, "PATH", "file or folder; default: by SOURCE, here")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    parser.add_argument(
        "--weights", choices=("ema", "model"), help="of a checkpoint with both; default: the EMA"
    )
    parser.add_argument(
        "--with-normalisation",
        action="store_true",
        help="onnx, torch-export: take images in [0, 1], and normalise them in the graph",
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="FOLDER",
        help="compare on images of this dataset; default: the run's validation images",
    )
    parser.add_argument("--num-images", type=int, default=16, metavar="N", help="so many (16)")
    group = parser.add_argument_group("what SOURCE does not say, or says otherwise")
    group.add_argument("--model", metavar="NAME", help="architecture, as model.name")
    group.add_argument("--classes", type=Path, metavar="FILE", help="the name of class i in line i")
    group.add_argument("--size", type=int, metavar="PX", help="side of the centre crop")
    group.add_argument("--crop-ratio", type=float, metavar="X", help="size / shorter edge")
    group.add_argument("--interpolation", choices=("bilinear", "bicubic"))
    for option in ("--mean", "--std"):
        group.add_argument(option, type=float, nargs=3, metavar=("R", "G", "B"))
    group = parser.add_argument_group("the Hugging Face hub")
    group.add_argument("--push", metavar="USER/NAME", help="upload; needs `hf auth login`")
    group.add_argument("--private", action="store_true", help="make a new repository private")
    return parser


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The preprocessing that the user sets."""
    given = {name: getattr(arguments, name) for name in PREPROCESSING}
    given = {name: value for name, value in given.items() if value is not None}
    for name in ("mean", "std"):
        if name in given:
            given[name] = tuple(given[name])
    if not 1 <= given.get("size", 1) <= 8192:
        raise UserError(f"--size {given['size']} is out of range: give 1 to 8192")
    if not 0.01 <= given.get("crop_ratio", 1) <= 1:
        raise UserError(f"--crop-ratio {given['crop_ratio']} is out of range: give 0.01 to 1")
    if min(given.get("std", (1,))) <= 0:
        raise UserError("--std: give three positive numbers")
    return given


def _stem(source: str) -> str:
    """What an export is called if nobody says: the run's name, or the file's."""
    path = Path(source).expanduser().absolute()
    name = path.name if path.is_dir() else path.stem
    if path.suffix == ".pt" and path.is_file():
        name = f"{path.parent.name}-{path.stem}"
    return name.partition(":")[2] or name


def _described(subject: Subject, with_normalisation: bool) -> str:
    weights, of = subject.weights, subject.preprocessing
    kind = "EMA" if weights.kind == "EMA" else "weights"
    scale = "in [0, 1]" if with_normalisation else f"normalised by mean {of.mean} and std {of.std}"
    names = "" if weights.classes else " without names"
    return (
        f"{kind} of {weights.architecture}, {subject.num_classes:,} classes{names}\n"
        f"takes float32 [batch, 3, {of.size}, {of.size}]\n{scale}"
    )


if __name__ == "__main__":
    run_command(main)
