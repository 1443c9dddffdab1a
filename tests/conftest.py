"""Data that several tests share: the digits, and photographs that installed packages carry."""

import multiprocessing
import os
import random
import subprocess
import sys
import zlib
from pathlib import Path

# With several workers each has one thread: more would wait for each other. Torch reads it once.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parent.parent

# Shared machines stall for seconds; and CI tests one change, not new examples.
hypothesis.settings.register_profile(
    "dali_rsb", deadline=None, derandomize=bool(os.environ.get("CI"))
)
hypothesis.settings.load_profile("dali_rsb")

# Makes processes for tests of several ranks: it imports what takes seconds once, for all of them.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["dali_rsb.training.step", "dali_rsb.run.meter"])


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device, and PyTorch sees none here")
    for item in items:
        if item.get_closest_marker("gpu"):  # not item.keywords, which hold parameters too
            item.add_marker(skip)


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable():
    """Let workers report what tests log of file names that are not UTF-8."""
    return _encodable((yield))


def _encodable(value):
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_encodable(key): _encodable(item) for key, item in value.items()}
    return type(value)(map(_encodable, value)) if isinstance(value, (list, tuple)) else value


@pytest.fixture(autouse=True)
def seeded(request):
    """Seed the global generators by the test's name.

    timm draws from them, as some tests do: a statistical bound that holds today holds tomorrow.
    """
    seed = zlib.crc32(request.node.nodeid.encode())
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 -- the global generator is the one that timm draws from
    torch.manual_seed(seed)


@pytest.fixture(scope="session")
def photographs():
    """Fourteen RGB photographs of various sizes and shapes, as PIL images."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    names = ("astronaut", "chelsea", "coffee", "rocket", "camera", "coins", "page", "text")
    arrays = [getattr(data, name)() for name in names]
    china, flower = load_sample_images().images
    arrays += [china, flower, china[60:360, 200:350], flower[40:400, 300:620]]
    arrays += [data.astronaut()[:180, 100:480], data.coffee()[100:390, 50:310]]
    return [Image.fromarray(np.ascontiguousarray(array)).convert("RGB") for array in arrays]


@pytest.fixture(scope="session")
def photo_folder(photographs, tmp_path_factory):
    """The photographs as JPEG files in ImageNet's layout, two classes of seven."""
    root = tmp_path_factory.mktemp("photographs")
    for number, photograph in enumerate(photographs):
        folder = root / f"n{number % 2:08d}"
        folder.mkdir(exist_ok=True)
        photograph.save(folder / f"photo_{number}.JPEG", quality=90)
    return root


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """Folder of the quickstart digits."""
    from dali_rsb.dataset.digits import write_digits

    root = tmp_path_factory.mktemp("digits") / "digits"
    write_digits(root)
    return root


def run_module(module, *arguments, cwd=None, processes=None, timeout_s=240):
    """Run a command of the package, by torchrun if `processes` is given; return its result."""
    launcher = [sys.executable, "-m"]
    if processes is not None:
        launcher += ["torch.distributed.run", f"--nproc_per_node={processes}"]
        launcher += ["--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0", "-m"]
    return subprocess.run(
        [*launcher, module, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
