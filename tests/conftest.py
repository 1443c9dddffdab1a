"""Data that several tests share: the digits, and photographs that installed packages carry."""

import multiprocessing
import os
import random
import runpy
import socket
import subprocess
import sys
import tempfile
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

# Makes processes for tests: it imports what takes seconds once, for all of them. There is one such
# server in a process, so that what any test needs is named here; and it ignores what it cannot
# import, such as the modules of the tests, which lie on this process's path alone.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        *("pytest", "hypothesis", "timm", "dali_rsb.training.assembly", "dali_rsb.tuning.apart"),
        "dali_rsb.kernels.resize_numba",
    ]
)


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


def run_module(module, *arguments, cwd=None, processes=1, timeout_s=240):
    """Run `python -m MODULE` in `processes` processes, as a launcher would; return the result.

    Children of the server begin at once. The output is that of all, rank after rank.
    """
    return _run_forked(_as_module, module, arguments, cwd, processes, timeout_s)


def run_script(path, *arguments, cwd=None, timeout_s=240):
    """Run `python PATH` as `run_module` runs a module."""
    return _run_forked(_as_script, path, arguments, cwd, 1, timeout_s)


def _as_module(module):
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _as_script(path):
    sys.path.insert(0, str(Path(path).parent))
    runpy.run_path(path, run_name="__main__")


def _run_forked(run, program, arguments, cwd, processes, timeout_s):
    words, children = [str(program), *map(str, arguments)], []
    with tempfile.TemporaryDirectory() as folder:
        for environment in _environments(processes):
            outputs = [Path(folder) / f"{len(children)}.{name}" for name in ("out", "err")]
            child = SERVER.Process(target=_begin, args=(run, words, cwd, environment, outputs))
            child.start()
            children.append(child)
        try:
            for child in children:
                child.join(timeout_s)
            if None in (codes := [child.exitcode for child in children]):
                raise subprocess.TimeoutExpired(words, timeout_s)
        finally:
            for child in children:
                child.kill()
        printed, messages = (
            "".join(path.read_text() for path in sorted(Path(folder).glob(f"*.{name}")))
            for name in ("out", "err")
        )
    return subprocess.CompletedProcess(words, max(codes, key=abs), printed, messages)


def _environments(processes):
    """What a launcher gives each of some processes of a node."""
    if processes == 1:
        return [dict(os.environ)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    shared |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    shared |= {"OMP_NUM_THREADS": "1"}
    return [
        os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        for rank in range(processes)
    ]


def _begin(run, words, cwd, environment, outputs):
    """Become, in a child of the server, the process that a shell would have started."""
    for number, output in enumerate(outputs, start=1):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", torch.get_num_threads())))
    if cwd is not None:
        os.chdir(cwd)
    sys.argv = words
    run(words[0])
