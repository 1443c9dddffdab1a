"""The model card of a hub folder: what the run has recorded, and that it has not where it has not.

Nothing here is taken from elsewhere: no license, no published accuracy, no praise.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import yaml

import dali_rsb
from dali_rsb.run.records import EpochRow
from dali_rsb.system.names import printable, short_path
from dali_rsb.weights.export.accuracy import curve, named_images
from dali_rsb.weights.export.subject import Subject

# Sections of a configuration that say what is learnt; the rest is about one machine.
_RECIPE = ("augment", "mixing", "model", "loss", "optimizer", "schedule", "ema")
_MAX_ROWS = 20
_MAX_CLASSES = 10
_FRONT_MATTER = """\
---
library_name: timm
pipeline_tag: image-classification
tags:
- image-classification
- timm
- dali_rsb
---
"""


def model_card(subject: Subject) -> str:
    """The text of README.md, in Markdown."""
    sections = [
        ("Use", _use()),
        ("Images", _images(subject)),
        ("Classes", _classes(subject)),
        ("Accuracy", _accuracy(subject)),
        ("Training", _training(subject)),
        ("Curve", _curve(curve(subject.weights))),
        ("Environment", _environment(subject)),
    ]
    text = "\n\n".join(f"## {title}\n\n{body}" for title, body in sections if body)
    return f"{_FRONT_MATTER}\n# {_title(subject)}\n\n{_summary(subject)}\n\n{text}\n"


def _title(subject: Subject) -> str:
    name = subject.weights.run.get("config", {}).get("name")
    return printable(name) if name else subject.timm_name


def _summary(subject: Subject) -> str:
    count = sum(tensor.numel() for tensor in subject.model.parameters())
    return (
        f"`{subject.timm_name}` for {subject.num_classes:,} classes, {count / 1e6:.1f} million "
        f"parameters{_of_epoch(subject)}."
    )


def _of_epoch(subject: Subject) -> str:
    run = subject.weights.run
    if averaged := run.get("averaged"):
        names = ", ".join(f"`{printable(name)}`" for name in averaged)
        return f": the mean of the weights of {len(averaged)} checkpoints ({names})"
    if "epoch" not in run:
        return ""
    kind = "EMA of the weights" if subject.weights.kind == "EMA" else "weights"
    return f": the {kind} after {run['epoch']:g} epochs"


def _use() -> str:
    return """\
```python
import timm
from timm.data import create_transform, resolve_data_config

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()  # or hf-hub:USER/NAME
transform = create_transform(**resolve_data_config({}, model=model))
logits = model(transform(image).unsqueeze(0))  # image: a PIL image in RGB
names = model.pretrained_cfg.get("label_names")
```

timm 1.0.16 or newer knows `local-dir:`."""


def _images(subject: Subject) -> str:
    of = subject.preprocessing
    text = (
        f"Resize the shorter edge to {int(of.size / of.crop_ratio)} px ({of.interpolation}), take "
        f"the central {of.size} px, scale to [0, 1], normalise by mean {list(of.mean)} and std "
        f"{list(of.std)}."
    )
    if subject.is_assumed:
        text += (
            "\n\nThe source of the weights does not say how images are prepared: at least a part "
            "of this is an assumption of the export."
        )
    return text


def _classes(subject: Subject) -> str:
    classes = subject.weights.classes
    if classes is None:
        return (
            f"{subject.num_classes:,} outputs; the source of the weights does not say what they "
            "are called."
        )
    names = ", ".join(f"`{printable(name)}`" for name in classes[:_MAX_CLASSES])
    more = ", ..." if len(classes) > _MAX_CLASSES else ""
    return f"{len(classes):,}, in the order of `label_names` in config.json: {names}{more}"


def _accuracy(subject: Subject) -> str:
    known = subject.accuracy
    if known is None:
        return "Not known: no evaluation of these very weights is recorded."
    top5 = "" if known.top5 is None else f", top-5 {known.top5:.2f} %"
    images = "the run's validation images"
    if known.images is not None:
        images += f", `{printable(known.images)}`,"
    chosen = ""
    if known.has_chosen:
        chosen = (
            " The weights were chosen among others by accuracy on these images: on images that had "
            "no say in it, it may be lower."
        )
    return (
        f"Top-1 {known.top1:.2f} %{top5} on {images} at {known.size} px, crop ratio "
        f"{known.crop_ratio:g}, {known.interpolation}, as the run evaluated it.{chosen}"
    )


def _training(subject: Subject) -> str:
    config = subject.weights.run.get("config")
    if config is None:
        return "Nothing is recorded of the training of these weights."
    names = {"train": "Training", "val": "Validation"}
    lines = [
        f"{names[split]} images: `{printable(folder)}`."
        for split, folder in named_images(subject.weights.run).items()
    ]
    if "averaged" in subject.weights.run:
        lines.append("The recipe is that of the first of the averaged checkpoints.")
    recipe = {name: dict(config[name]) for name in _RECIPE if name in config}
    initial = recipe.get("model", {}).get("weights")
    if initial is not None:
        recipe["model"]["weights"] = short_path(initial)
    seed = config.get("run", {}).get("seed")
    if seed is not None:
        recipe["run"] = {"seed": seed}
    text = yaml.safe_dump(_plain(recipe), sort_keys=False, allow_unicode=True).rstrip()
    return "\n\n".join([*lines, f"```yaml\n{text}\n```"])


def _plain(value: Any) -> Any:
    """Lists for tuples, which YAML has none of."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _curve(rows: Sequence[EpochRow]) -> str:
    """A table of at most 20 epochs, the last one among them."""
    if not rows:
        return ""
    step = -(-len(rows) // _MAX_ROWS)
    chosen = rows[::-1][::step][::-1]
    lines = ["| epoch | training loss | top-1 % | EMA top-1 % |", "|---|---|---|---|"]
    lines += [
        f"| {row.epoch} | {row.train_loss:.4f} | {_cell(row.val_top1)} | {_cell(row.ema_top1)} |"
        for row in chosen
    ]
    note = f"Each {step} of {len(rows)} epochs, from `metrics.csv`.\n\n" if step > 1 else ""
    return note + "\n".join(lines)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _environment(subject: Subject) -> str:
    run = subject.weights.run
    lines = []
    if of_training := dict(run.get("environment", {})):
        devices = of_training.pop("devices", "devices that are not recorded")
        listed = ", ".join(f"{name} {version}" for name, version in of_training.items())
        lines.append(f"Trained on {devices} with {listed}.")
    elif "config" in run:
        lines.append("The environment of the training is not recorded.")
    lines.append(f"Exported by dali_rsb {dali_rsb.__version__} with {_versions()}.")
    lines.append(f"Its logits were compared with the model's on {subject.images_are}.")
    return " ".join(lines)


def _versions() -> str:
    found = [f"Python {platform.python_version()}"]
    found += [f"{name} {metadata.version(name)}" for name in ("torch", "timm", "safetensors")]
    return ", ".join(found)
