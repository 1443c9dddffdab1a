"""Where a run of `killed_runs` gets a signal."""

import os

PLACES = [
    "indexing",
    "building",
    "warm-up",
    "an update",
    "the last update of an epoch",
    "the last update of the run",
    "evaluation",
    "the end of an evaluation",
    "a checkpoint",
    "reporting an epoch",
]


def signal_at(place, number):
    """Send this process a signal at a place of its run, the first time that it comes there."""
    from dali_rsb.evaluation import accuracy, validation
    from dali_rsb.run import checkpoint, checkpointer
    from dali_rsb.training import assembly, trainer

    module, name, calls = {
        "reading a checkpoint": (checkpoint, "read_seal", 1),
        "indexing": (assembly, "open_datasets", 1),
        "building": (assembly, "build_step", 1),
        "warm-up": (trainer, "warm_up_training", 1),
        "an update": (trainer.TrainStep, "update", 3),
        "the last update of an epoch": (trainer.TrainStep, "update", 4),
        "the last update of the run": (trainer.TrainStep, "update", 12),
        "evaluation": (accuracy, "_count", 2),
        "the end of an evaluation": (validation.Validation, "evaluate", 1),
        "a checkpoint": (checkpointer, "save_checkpoint", 2),
        "reporting an epoch": (trainer.EpochRow, "__init__", 2),
    }[place]
    left, original = [calls], getattr(module, name)

    def signalling(*arguments, **options):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), number)
        return original(*arguments, **options)

    setattr(module, name, signalling)
