"""The command `dali-rsb report RUN ... [--output FILE.html]`: one page of one or more runs.

RUN is a run folder, also of a run that is still going or was killed. The page is one file without
network or scripts: results beside the published ones, curves against epochs, images and time, where
the time went, in which keys the runs differ, and the worst classes with their confusions and
examples. For these the best checkpoint is evaluated on the run's own validation images.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from dali_rsb.config.options import OptionsParser, add_output, path
from dali_rsb.errors import UserError, run_command
from dali_rsb.evaluation.report import check_writable
from dali_rsb.pictures.class_errors import ClassErrors, class_errors
from dali_rsb.pictures.plots import check_installed
from dali_rsb.pictures.published import nearest_recipe, published_top1
from dali_rsb.pictures.run_history import RunHistory, names_of, read_run
from dali_rsb.pictures.run_report import Reported, report
from dali_rsb.run.console import console_messages
from dali_rsb.run.processes import Processes, processes
from dali_rsb.weights.sources import open_weights


def main() -> None:
    arguments = _parser().parse_args()
    check_installed()
    check_writable("--output", arguments.output)
    names = names_of(arguments.runs)
    runs = [read_run(folder, name) for folder, name in zip(arguments.runs, names, strict=True)]
    with console_messages(), processes(arguments.device) as alone:
        if alone.world_size > 1:
            raise UserError("report runs in one process; start it without torchrun")
        reported = [_reported(run, arguments.evaluate, alone) for run in runs]
    report(reported).write(arguments.output)
    print(arguments.output)


def _parser() -> OptionsParser:
    parser = OptionsParser("report", __doc__)
    parser.add_argument("runs", metavar="RUN", nargs="+", type=path, help="a run folder")
    add_output(parser, "FILE", "the page", "report.html")
    parser.add_argument(
        "--no-evaluation",
        dest="evaluate",
        action="store_false",
        help="from the records alone, in seconds: without the worst classes",
    )
    parser.add_argument(
        "--device", default="auto", choices=("auto", "cpu", "cuda"), help="of that evaluation"
    )
    return parser


def _reported(run: RunHistory, evaluate: bool, alone: Processes) -> Reported:
    errors: ClassErrors | str | None = None
    if evaluate:
        print(f"evaluating the best weights of {run.name}", flush=True)
        try:
            errors = class_errors(run.folder, alone)
        except UserError as error:
            print(f"{run.name}: {error}", file=sys.stderr, flush=True)
            errors = f"The best weights could not be evaluated: {error}"
    nearest = nearest_recipe(run.config)
    classes: Sequence[str] | None = None
    if isinstance(errors, ClassErrors):
        classes = errors.subject.classes
    elif not nearest.differing:  # all else has no published figure, whatever its classes
        classes = _classes(run.folder)
    return Reported(run, nearest, published_top1(nearest, classes), errors)


def _classes(folder: Path) -> Sequence[str] | None:
    """The classes of a run's best checkpoint; None where it cannot be read."""
    try:
        return open_weights(str(folder)).classes
    except UserError:
        return None


if __name__ == "__main__":
    run_command(main)
