"""The command `dali-rsb replay RUN --update N`: the images of an update, as the model saw them.

Writes the pictures of each image, stage by stage, replay.json and the page replay.html. Nothing
needs to have been logged: batches are a pure function of the run folder and the dataset. On a CPU;
to the bit where the run was on one.

    dali-rsb replay runs/a3 --update 31415
    dali-rsb replay runs/a3 --update 31415 --image n01440764/10026.JPEG
    dali-rsb replay runs/a3 --update 31415 --without n01440764/10026.JPEG
"""

from __future__ import annotations

from pathlib import Path

from dali_rsb.config.arguments import ConfigParser
from dali_rsb.config.options import add_output
from dali_rsb.errors import run_command
from dali_rsb.pictures.past import add_past_arguments, open_past, past_of
from dali_rsb.pictures.replay_folder import JSON, PAGE, Selection, notes, write_replay
from dali_rsb.pictures.replaying import Replayer
from dali_rsb.run.console import console_messages


def main() -> None:
    parser = ConfigParser("replay", __doc__, "RUN", "a run folder")
    parser.add_argument(
        "--update", type=int, required=True, metavar="N", help="number in all, from 1"
    )
    parser.add_argument("--epoch", type=int, metavar="E", help="--update counts in this epoch")
    parser.add_argument(
        "--position",
        type=int,
        action="append",
        default=[],
        metavar="P",
        help="only the image at this position of the epoch; may be given again",
    )
    parser.add_argument(
        "--image", action="append", default=[], metavar="FILE", help="only this file, likewise"
    )
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="FILE",
        help="the batch as it would have been, had this file been unreadable, likewise",
    )
    parser.add_argument(
        "--tensors", action="store_true", help="write the batches too, for torch.load"
    )
    add_past_arguments(parser)
    add_output(parser, "FOLDER", "of the pictures; default: replay-N in the run folder")
    options = parser.parse()
    folder = Path(options.run).expanduser()
    with console_messages():
        pasts = open_past(folder, options.world_size, options.overrides)
        past, position = past_of(pasts, options.update, options.epoch)
        replayer = Replayer(past, options.without, options.changed)
        try:
            selection = Selection(
                options.position, replayer.rows_of(options.image), options.tensors
            )
            target = options.output or folder / f"replay-{options.update}"
            content = write_replay(replayer, position, selection, target)
        finally:
            replayer.close()
    for note in notes(replayer):
        print(f"note: {note}")
    print(
        f"update {content['update']}, epoch {content['epoch']} ({past.config_name}, "
        f"{content['world_size']} process(es)): {len(content['samples']):,} images in {target}, "
        f"{JSON} and {PAGE}"
    )


if __name__ == "__main__":
    run_command(main)
