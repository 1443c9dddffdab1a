"""The command `dali-rsb gradcam WEIGHTS ... --images IMAGES`: where networks see what they say.

WEIGHTS: as for `dali-rsb evaluate`, any number of them; of a checkpoint with an EMA, the EMA.
IMAGES: a dataset (class folders, tar shards, a list), a flat folder, or image files.

Writes class activation maps into a folder, one row an image, one column a network: gradcam.html,
the same as gradcam.png, and gradcam.json with predictions, probabilities and the maps' values. Each
network gets its images as its own evaluation prepares them.

    dali-rsb gradcam runs/a1 timm:resnet50.a3_in1k --images photos/*.jpg
"""

from __future__ import annotations

from pathlib import Path

from dali_rsb.config.arguments import ConfigParser, is_override
from dali_rsb.config.options import add_output, path
from dali_rsb.dataset.classes import read_class_names
from dali_rsb.errors import UserError, run_command
from dali_rsb.pictures.activation_comparison import (
    LABEL,
    PREDICTED,
    Question,
    column_of,
    open_images,
    rows_of,
    some,
)
from dali_rsb.pictures.activation_maps import METHODS, check_installed
from dali_rsb.pictures.activation_page import table, write
from dali_rsb.pictures.tracked import send, tracked_run
from dali_rsb.run.console import console_messages
from dali_rsb.run.processes import processes
from dali_rsb.system.names import printable
from dali_rsb.training.subjects import open_subjects

MAX_COUNT = 32  # rows of a picture that can still be opened


def main() -> None:
    options = _parser().parse()
    check_installed()
    words = [options.weights, *options.overrides]
    overrides = list(filter(is_override, [*words, *options.images]))
    sources = [word for word in words if not is_override(word)]
    paths = [word for word in options.images if not is_override(word)]
    if not sources or not paths:
        raise UserError("name weights and images: dali-rsb gradcam WEIGHTS ... --images IMAGES")
    if not 1 <= options.count <= MAX_COUNT:
        raise UserError(f"--count {options.count}: give a number from 1 to {MAX_COUNT}")
    tracked = None if options.run is None else tracked_run(options.run, overrides)
    output = options.output.absolute()
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {printable(output, 150)} is no folder: name another")
    names = None if options.classes is None else read_class_names(options.classes)
    opened = open_subjects(sources, options.use, overrides, (), names)
    config, question = opened[0].config, Question(options.target, options.layer, options.method)
    with console_messages(), processes(config.run.device) as alone:
        if alone.world_size > 1:
            raise UserError("gradcam runs in one process; start it without torchrun")
        images = some(open_images(paths, config.data), options.count, options.seed)
        columns = []
        for one in opened:
            print(one.subject.line, flush=True)
            columns.append(column_of(one, images, question, alone))
    rows = rows_of(images, opened[0])
    words_of = {PREDICTED: "the likeliest class", LABEL: "the labelled class"}
    wanted = words_of.get(options.target, f"class {options.target}")
    paths = write(output, rows, columns, options.method, wanted)
    print("\n".join(map(str, paths)))
    if tracked is not None:
        for line in send(tracked, table(rows, columns, paths)):
            print(line)


def _parser() -> ConfigParser:
    parser = ConfigParser("gradcam", __doc__, "WEIGHTS", "a run, a checkpoint, weights")
    parser.usage = "dali-rsb gradcam WEIGHTS ... --images IMAGES [OPTIONS] [KEY=VALUE ...]"
    parser.add_argument(
        "--images",
        nargs="+",
        required=True,
        metavar="IMAGES",
        help="a dataset, a flat folder, or image files",
    )
    add_output(parser, "FOLDER", "of what is written", "gradcam")
    parser.add_argument(
        "--run",
        type=path,
        metavar="RUN",
        help="give the maps to the tracking services of this run as well, as a table",
    )
    parser.add_argument(
        "--class",
        dest="target",
        default=PREDICTED,
        metavar="CLASS",
        help="whose maps: predicted (the likeliest class, the default), label (the image's own), "
        "or the name of a class",
    )
    parser.add_argument(
        "--layer",
        metavar="NAME",
        help="module whose output is weighed, such as layer3; default: the last that gives maps",
    )
    parser.add_argument(
        "--method", choices=tuple(METHODS), default="gradcam", help="default: gradcam"
    )
    parser.add_argument(
        "--count",
        type=int,
        default=8,
        metavar="N",
        help="images at most, up to 32, chosen at random; 8",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of that choice; 0")
    parser.add_argument(
        "--use",
        choices=("judged", "model", "ema"),
        default="judged",
        help="of a checkpoint with both: the trained weights, their EMA, or, by default, those "
        "that its evaluations judged: the EMA where there is one",
    )
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="names of the outputs, in their order, of weights that have none",
    )
    return parser


if __name__ == "__main__":
    run_command(main)
