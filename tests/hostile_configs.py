"""Random configurations: any value for any key, any text, any override, from a seed.

The keys and their bounds come from the schema, so that a new key is tried without being named here.
Values are valid, at a bound, just beyond it, no number at all, or of another type. What is valid
trains really, on twelve images; `_AFFORDABLE` keeps such a run within seconds.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import TypeAdapter

from dali_rsb.config.sections import sections

# A run that nobody asks anything of: two updates of eight images. What keeps it short comes first,
# and is left where a text is cut.
BASE: dict[str, dict[str, Any]] = {
    "run": {"max_steps": 2, "device": "cpu", "dir": "run", "warm_up": False, "log_every": 1},
    "schedule": {"epochs": 1, "warmup_epochs": 0},
    "data": {"train": "images/train", "val": "images/val", "threads": 1},
    "augment": {"size": 32},
    "model": {"name": "timm:test_resnet", "num_classes": 2},
    "optimizer": {"batch_size": 8},
    "evaluation": {"size": 32, "batch_per_device": 4},
}

# Where the whole range is a week of work, a network, or a machine of another kind: what is drawn
# instead of a valid value. Values beyond the bounds are drawn from the schema all the same.
_AFFORDABLE: dict[str, list[Any]] = {
    "data.threads": [1, 2, 3, 16],
    "data.prefetch": [2, 3, 5],
    "data.pipelines": [1, 2, 3],
    "data.batches_per_run": [1, 2, 7],
    "augment.size": [1, 2, 7, 32, 33, 64],
    "augment.repeats": [1, 2, 3, 12, 1000],
    "augment.scale": [[0.08, 1.0], [1, 1], [1e-300, 1.0], [1e-3, 1e-3], [0.0, 1.0], [0.5, 0.4]],
    "augment.ratio": [[0.75, 1.5], [1, 1], [1e-300, 1e3], [1e-300, 1e-300], [1e3, 1e3], [1e-3, 1]],
    "augment.randaugment": [None, "rand-m9", "rand-m6-mstd0.5-inc1", "rand-n10-m10", "rand-m0-w0"],
    "data.mean": [[0, 0, 0], [1e3, 1e3, 1e3], [-1e3, 0.5, 1], [1e-300] * 3],
    "data.std": [[1, 1, 1], [1e3, 1e3, 1e3], [1e-6] * 3, [0.99e-6] * 3, [-1, 1, 1]],
    "evaluation.size": [1, 2, 7, 32, 33, 64],
    "evaluation.crop_ratio": [0.25, 0.5, 0.875, 1.0],
    "model.name": ["timm:test_resnet", "timm:test_efficientnet", "timm:test_vit", "resnet18"],
    "model.weights": [None, "images", "c.yaml", "run", "run/last.pt", "/dev/null", "timm:", "hf:"],
    "optimizer.batch_size": [1, 2, 3, 4, 8, 12, 13, 10**7],
    "optimizer.betas": [[0.9, 0.999], [0.0, 0.0], [1 - 1e-16, 1 - 1e-16], [0.5, 1e-300]],
    "run.device": ["cpu", "auto", "cuda"],
    "run.compile": [False, "auto"],
    "run.max_steps": [1, 2, 3],
    "run.dir": ["run", "images", "c.yaml", "images/train/a/0.jpg/run", "é/日本", "/proc/run"],
    "tracking.trackers": [[], ["tensorboard"], "tensorboard", ["trackio"], ["tensorboard"] * 2],
    "tracking.mode": ["offline"],
}
_PATHS: list[Any] = [
    "images/train",
    "images/val",
    "images",
    "images/train/a",
    "images/train/a/0.jpg",
    "c.yaml",
    "nowhere",
    "",
    ".",
    "~",
    "~nobody-here/x",
    "/dev/null",
    "/dev/stdin",
    "/etc/passwd",
    "/proc/self",
    "x" * 300,
    "x/" * 3000,
    "a\0b",
    "a\nb",
    "日本/ключ",
    "{000..009}.tar",
    "*.tar",
    "http://127.0.0.1:1/x",
]
_TEXTS: list[Any] = [
    *("", " ", "abc", "none", "auto", "a\nb", "a\0b", "\x1b[31m", "ключ", "\u202e", "x" * 5000),
    *("rand-m9", "rand-m7-mstd0.5-inc1", "rand-m3-n1", "rand-m-1", "rand-mnan", "rand-m1e9-n1"),
    *("rand-n99-m3", "rand-n0-m3", "rand-m5-mstdinf", "rand-m5-w0", "augmix-m3", "original"),
    *("timm:", "timm:nope", "resnet", "RESNET18", "resnet50 ", "timm:timm:resnet18"),
]
_NO_NUMBERS: list[Any] = [math.nan, math.inf, -math.inf, "nan", "inf", ".inf", "1e400", "0x1f"]
_HUGE: list[Any] = [10**12, 2**31, 2**63, 2**64, 10**30, 10**400, 1e300, -1, -1e300, 1e-320, -0.0]
_WRONG: list[Any] = [
    *(None, True, False, 0, 1, 1.5, "", "yes", "1", "1e-3", [], [1], [[1]], {}, {"a": 1}),
    *([1, 2, 3, 4], ["a", 1, None], list(range(2000)), {"a": {"b": [1]}}),
]


@dataclass(frozen=True)
class Case:
    """A configuration file and the words behind it on the command line."""

    text: bytes
    words: tuple[str, ...] = ()


def cases(count: int, seed: int) -> list[Case]:
    """So many random cases; the same for the same seed."""
    return [_case(random.Random(f"{seed}/{number}")) for number in range(count)]


def _case(rng: random.Random) -> Case:
    tree = {name: dict(values) for name, values in BASE.items()}
    words = []
    for _ in range(rng.choice([0, 1, 1, 2, 3, 5])):
        key = rng.choice(list(_SCHEMAS))
        value = _value(key, rng)
        if rng.random() < 0.3:
            words.append(f"{key}={_inline(value)}")
        else:
            section, name = key.split(".")
            tree.setdefault(section, {})[name] = value
    if rng.random() < 0.05:
        tree[rng.choice(["name", "ключ", "", "run ", *BASE])] = rng.choice([*_TEXTS, *_WRONG])
    if rng.random() < 0.08:
        words.append(rng.choice(_ODD_WORDS)(rng))
    text = yaml.safe_dump(
        tree,
        allow_unicode=rng.random() < 0.5,
        default_flow_style=rng.choice([None, True, False]),
        sort_keys=False,
    )
    if rng.random() < 0.12:
        text = rng.choice(_ODD_TEXTS)(text, rng)
    data = text.encode("utf-8", "surrogatepass")
    if rng.random() < 0.06:
        data = rng.choice(_ODD_BYTES)(data, rng)
    # Linux passes no NUL and no word of over 128 KiB.
    return Case(data, tuple(word.replace("\0", "")[:100_000] for word in words))


def _value(key: str, rng: random.Random) -> Any:
    """A value for a key: for six in ten one that fits, for the others one that may not."""
    if rng.random() < 0.6:
        return rng.choice(_AFFORDABLE[key]) if key in _AFFORDABLE else _fitting(_SCHEMAS[key], rng)
    return rng.choice([_beyond, _pick(_NO_NUMBERS), _pick(_HUGE), _pick(_WRONG), _pick(_TEXTS)])(
        _SCHEMAS[key], rng
    )


def _pick(values: list[Any]):  # type: ignore[no-untyped-def]
    return lambda schema, rng: rng.choice(values)


def _fitting(schema: dict[str, Any], rng: random.Random) -> Any:
    """A value that a JSON schema admits, its bounds included."""
    if "anyOf" in schema:
        return _fitting(rng.choice(schema["anyOf"]), rng)
    if "enum" in schema or "const" in schema:
        return rng.choice(schema.get("enum", [schema.get("const")]))
    kind = schema["type"]
    if kind == "array":
        count = schema.get("minItems", rng.randint(0, 3)) or rng.randint(0, 3)
        return sorted((_fitting(_item(schema), rng) for _ in range(count)), key=str)
    if kind == "integer":
        low, high = _bounds(schema, 1)
        near, far = rng.randint(low, min(high, low + 10)), rng.randint(low, high)
        return rng.choice([low, high, near, far])
    if kind == "number":
        low, high = _bounds(schema, 1e-9)
        return rng.choice([low, high, rng.uniform(low, min(high, 1.0)), rng.uniform(low, high)])
    if kind == "boolean":
        return rng.random() < 0.5
    if kind == "null":
        return None
    return rng.choice(_PATHS if schema.get("format") == "path" else _TEXTS)


def _item(schema: dict[str, Any]) -> dict[str, Any]:
    return schema["items"] if "items" in schema else schema["prefixItems"][0]


def _bounds(schema: dict[str, Any], step: Any) -> tuple[Any, Any]:
    """The least and the largest value of a number."""
    low = schema.get("minimum", schema.get("exclusiveMinimum", -step) + step)
    high = schema.get("maximum", schema.get("exclusiveMaximum", 1000 + step) - step)
    return low, high


def _beyond(schema: dict[str, Any], rng: random.Random) -> Any:
    """A value that just misses what a JSON schema admits."""
    if "anyOf" in schema:
        return _beyond(rng.choice(schema["anyOf"]), rng)
    if "enum" in schema or "const" in schema:
        word = str(rng.choice(schema.get("enum", [schema.get("const")])))
        return rng.choice([word.upper(), f"{word} ", word[:-1], f"{word}x", [word]])
    kind = schema["type"]
    if kind == "array":
        items = [_fitting(_item(schema), rng) for _ in range(schema.get("minItems", 1))]
        return rng.choice([items[1:], [*items, *items], [items], [math.nan, *items[1:]]])
    if kind in ("integer", "number"):
        step = 1 if kind == "integer" else 1e-9
        low, high = _bounds(schema, step)
        return rng.choice([low - step, high + step, -high, str(low), low + 0.5])
    if kind == "boolean":
        return rng.choice(["yes", "True", 0, 1])
    return rng.choice([0, 1.5, True, ["a"], b"bytes"])


def _inline(value: Any) -> str:
    """A value as it stands behind `key=`."""
    if isinstance(value, str):
        return value
    return yaml.safe_dump(value, default_flow_style=True, width=math.inf).removesuffix("...\n")[:-1]


def _place(text: Any, rng: random.Random) -> int:
    return rng.randint(0, len(text))


def _line(text: str, rng: random.Random) -> str:
    return rng.choice(text.splitlines() or [""])


def _spliced(text: Any, at: int, by: Any, cut: int = 0) -> Any:
    return text[:at] + by + text[at + cut :]


_ODD_TEXTS = [
    lambda text, rng: _spliced(text, _place(text, rng), rng.choice(_SIGNS)),
    lambda text, rng: _spliced(text, _place(text, rng), "", rng.randint(1, 20)),
    lambda text, rng: text[: _place(text, rng)],
    lambda text, rng: f"{text}\n{_line(text, rng)}\n",
    lambda text, rng: f"{text}---\n{text}",
    lambda text, rng: text + "z: &z [*z]\n",
    lambda text, rng: text + "tracking: &t {tags: *t}\n",
    lambda text, rng: text + "tracking: {<<: {tags: [a]}, project: p}\n",
    lambda text, rng: (
        "a0: &a0 [x, x]\n"
        + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
        + text
    ),
    lambda text, rng: "data: " + rng.choice("[{") * 3000,
    lambda text, rng: "".join(f"{' ' * i}a:\n" for i in range(900)),
    lambda text, rng: text.replace("32", rng.choice(["0o40", "040", "3_2", "0:32", "32.0"])),
    lambda text, rng: text.replace(": 2", f": 0x{'f' * 100_000}"),
    lambda text, rng: text.replace(": 2", f": {'9' * 6000}"),
    lambda text, rng: text + f"tracking: {{project: !!{rng.choice(_TAGS)}}}\n",
    lambda text, rng: rng.choice(["", "\n", "# nothing\n", "3", "- a", "null", "? [a]\n: 1"]),
    lambda text, rng: text + rng.choice(["null: 1\n", "3: {a: 1}\n", "? {a: 1}\n: 1\n"]),
    lambda text, rng: text.replace("\n", "\r\n"),
    lambda text, rng: text.replace("\n", "\r"),
    lambda text, rng: "%YAML 9.9\n---\n" + text,
]
_SIGNS = "\t{}[],:&*!|>'\"%@`#-?~\0\x07"
_TAGS = [
    *("python/object/apply:os.system [true]", "binary 'a===='", "set {a}", "timestamp x", "int ''"),
    *("float x", "bool x", "omap [1]"),
]
_ODD_BYTES = [
    lambda data, rng: b"\xef\xbb\xbf" + data,
    lambda data, rng: data.decode("utf-8", "replace").encode("utf-16"),
    lambda data, rng: _spliced(data, _place(data, rng), b"\xe9"),
    lambda data, rng: _spliced(data, _place(data, rng), rng.randbytes(20)),
    lambda data, rng: rng.randbytes(500),
    lambda data, rng: data + b"#" * 2_000_000,
]
_ODD_WORDS = [
    lambda rng: rng.choice(list(_SCHEMAS)),
    lambda rng: rng.choice(list(_SCHEMAS)) + "=",
    lambda rng: f"--{rng.choice(list(_SCHEMAS)).partition('.')[2].replace('_', '-')}=1",
    lambda rng: rng.choice(["=", ".=", "a.b=1", "optimizer.=1", ".lr=1", "lr=1", "optimizer=1"]),
    lambda rng: rng.choice(["name=", "name=../x", "name=x", "name=[1]", f"name={'n' * 300}"]),
    lambda rng: rng.choice(["", "-", "--", "-x", "--help=1", "é", "\n", "\udcff", "x" * 5000]),
    lambda rng: rng.choice(["--resume", "--resume=auto", "--resume=run", "--resume=/dev/null"]),
    lambda rng: rng.choice(["--dry-run", "--dry-run=1", "--world-size=0", "--img-per-s=nan"]),
    lambda rng: f"{rng.choice(list(_SCHEMAS))}=[" + "[" * rng.choice([1, 2000]),
    lambda rng: f"{rng.choice(list(_SCHEMAS))}={rng.choice(['&a [*a]', '*a', '!!x y', '{'])}",
]
_SCHEMAS = {
    f"{name}.{key}": TypeAdapter(field.rebuild_annotation()).json_schema()
    for name, section in sections().items()
    for key, field in section.model_fields.items()
}
