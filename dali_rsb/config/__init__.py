"""The configuration: YAML and `section.key=value` read into one typed, frozen tree.

`sections` holds every key with its meaning, `reading` makes the tree, `mistakes` says what is wrong
with one. Unknown keys, wrong types and combinations that cannot work are `UserError`s that name the
key and the fix. Needs pydantic and yaml, neither torch nor DALI.
"""

from dali_rsb.config.reading import load_config, override_config, with_values
from dali_rsb.config.sections import (
    Augment,
    Config,
    Data,
    Ema,
    Evaluation,
    Loss,
    Mixing,
    Model,
    Optimizer,
    Run,
    Schedule,
    Section,
    Tracking,
)

__all__ = [
    "Augment",
    "Config",
    "Data",
    "Ema",
    "Evaluation",
    "Loss",
    "Mixing",
    "Model",
    "Optimizer",
    "Run",
    "Schedule",
    "Section",
    "Tracking",
    "load_config",
    "override_config",
    "with_values",
]
