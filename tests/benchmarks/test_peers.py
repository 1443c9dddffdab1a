"""Other loaders deliver whole batches across epochs, and timm's pixels where they are said to.

Those that are not installed are skipped; benchmarks/README.md says how to install them.
"""

import dataclasses
import itertools
import json
import sys

import numpy as np
import pytest
from conftest import ROOT

from benchmarks import imagenet_like, peer_formats, report
from dali_rsb.errors import UserError

NUM_IMAGES, BATCH = 24, 8
NUM_BATCHES = 2 * NUM_IMAGES // BATCH + 1  # into the third epoch


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("imagenet_like") / "images"
    imagenet_like.write_imagenet_like(root, NUM_IMAGES, num_classes=3, seed=0)
    return root


@pytest.fixture(scope="module")
def task(images):
    from benchmarks.peers import LoaderTask

    return LoaderTask(images, BATCH, 32, None, num_threads=1)


@pytest.fixture(scope="module")
def index(images, tmp_path_factory):
    from dali_rsb.dataset import open_index

    return open_index(images, tmp_path_factory.mktemp("index"), progress=False)


def _take(batches):
    taken = list(itertools.islice(batches, NUM_BATCHES))
    if hasattr(batches, "close"):
        batches.close()
    assert taken == [BATCH] * NUM_BATCHES


def test_tensors_of_torchvision(task):
    from benchmarks.peers_stored import tensor_loader

    _take(tensor_loader(task))


@pytest.mark.parametrize("pixels", ["tensors", "timm", "libav"])
def test_spdl(task, pixels):
    pytest.importorskip("spdl.io")
    from benchmarks.peers_stored import spdl_loader

    _take(spdl_loader(task, pixels))


def test_webdataset_on_our_shards(task, index, tmp_path):
    pytest.importorskip("webdataset")
    from benchmarks.peers_stored import webdataset_loader
    from dali_rsb.dataset.packing import PackOptions

    shards = tmp_path / "shards"
    peer_formats._write_shards(index, PackOptions(), shards)
    assert len(list(shards.glob("*.tar"))) >= 4  # so that each worker has some
    _take(webdataset_loader(dataclasses.replace(task, data=shards)))


def test_litdata(task, index, tmp_path):
    pytest.importorskip("litdata")
    from benchmarks.peers_stored import litdata_loader

    peer_formats._write_litdata(index, tmp_path / "chunks")
    _take(litdata_loader(dataclasses.replace(task, data=tmp_path / "chunks"), "tensors"))


def test_streaming(task, index, tmp_path):
    pytest.importorskip("streaming", exc_type=ImportError)
    from benchmarks.peers_stored import streaming_loader

    peer_formats._write_mds(index, tmp_path / "mds")
    _take(streaming_loader(dataclasses.replace(task, data=tmp_path / "mds"), "tensors"))


@pytest.mark.parametrize("share_raw", [0.0, 0.5, 1.0])
def test_ffcv_at_256_px(task, images, tmp_path, share_raw):
    pytest.importorskip("ffcv")
    from benchmarks.peers import ffcv_loader

    file = tmp_path / "images.beton"
    peer_formats.write_ffcv(images, file, 256, share_raw)
    _take(ffcv_loader(task, file=lambda: file))


@pytest.mark.parametrize("package", ["litdata", "streaming", "webdataset", "spdl.pipeline"])
def test_what_is_not_installed_says_so(task, monkeypatch, package):
    from benchmarks import peers_stored

    starts = {
        "litdata": peers_stored.litdata_loader,
        "streaming": peers_stored.streaming_loader,
        "webdataset": peers_stored.webdataset_loader,
        "spdl.pipeline": peers_stored.spdl_loader,
    }
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(report.NotInstalledError, match="not installed"):
        next(starts[package](task))


def _whole_image(monkeypatch, task, image, pixels, interpolation):
    """The transform of a whole image, not mirrored, so that nothing is left to chance."""
    from torchvision.transforms import v2

    from benchmarks.peers_pixels import image_transform

    height, width = image.shape[:2]
    if pixels == "timm":
        from timm.data import transforms as of_timm

        whole = lambda *_: (0, 0, height, width)  # noqa: E731
        monkeypatch.setattr(of_timm.RandomResizedCropAndInterpolation, "get_params", whole)
    else:
        whole = lambda *_: {"top": 0, "left": 0, "height": height, "width": width}  # noqa: E731
        monkeypatch.setattr(v2.RandomResizedCrop, "make_params", whole)
        monkeypatch.setattr(v2, "RandomChoice", lambda crops: crops[interpolation])
    return image_transform(task, pixels)


def test_tensors_have_the_pixels_of_timm(task, images, monkeypatch):
    """Bilinear or bicubic on both sides: of what timm draws, the nearer one is what is compared."""
    import random

    import torch
    from PIL import Image

    file = next(path for path in sorted(images.glob("*/*")) if Image.open(path).size == (500, 375))
    encoded, array = file.read_bytes(), np.asarray(Image.open(file).convert("RGB"))
    timm = _whole_image(monkeypatch, task, array, "timm", 0)
    for interpolation in (0, 1):
        tensors = _whole_image(monkeypatch, task, array, "tensors", interpolation)
        differences = []
        for seed in range(12):
            random.seed(seed)
            torch.manual_seed(seed)
            ours = tensors(encoded).int()
            differences.append((ours - timm(encoded).int()).abs().max().item())
        assert min(differences) <= 1


def test_formats_that_cannot_be_written_are_named(images, tmp_path, monkeypatch):
    for package in ("streaming", "litdata", "ffcv.fields"):
        monkeypatch.setitem(sys.modules, package, None)
    lines = []
    prepared = tmp_path / "prepared"
    found = peer_formats.write_formats(images, prepared, lines.append)
    assert json.loads((prepared / peer_formats.FORMATS_FILE).read_text()) == found
    assert found["small_folder"]["bytes"] < found["original_shards"]["bytes"] / 2
    assert "litdata" in found["original_litdata"]["left_out"]
    assert any(line.startswith("ffcv_raw_256: ") for line in lines)
    assert peer_formats.stored(prepared, "small_folder") == prepared / "small_folder"
    with pytest.raises(report.NotInstalledError, match="FFCV is not installed"):
        peer_formats.stored(prepared, "ffcv_raw_256")
    with pytest.raises(report.NotInstalledError, match="--prepared"):
        peer_formats.stored(None, "small_folder")
    with pytest.raises(UserError, match="python -m benchmarks"):
        peer_formats.stored(tmp_path, "small_folder")
    with pytest.raises(UserError, match="not an empty folder"):
        peer_formats.write_formats(images, prepared, lines.append)
    assert len(list((prepared / "small_folder").glob("*/*.jpg"))) == NUM_IMAGES


def test_every_pair_is_among_the_candidates(task, tmp_path):
    from benchmarks import peer_loaders

    augmented = dataclasses.replace(task, randaugment="rand-m6-mstd0.5-inc1")
    form = peer_loaders.Stored(packs={"tiles": tmp_path})
    for group in peer_loaders.GROUPS.values():
        found = group(augmented, form)
        named = {name for pair in found.comparisons for name in (pair.ours, pair.theirs)}
        assert named == set(found.candidates)
        assert all(
            pair.ours.endswith(" plain") == pair.theirs.endswith(" plain")
            for pair in found.comparisons
        )
    assert "dali_rsb tiles plain" in found.candidates
    packed = _loader_group_with_a_pack(augmented, tmp_path)
    pairs = {(pair.ours, pair.theirs) for pair in packed.comparisons}
    assert {("dali_rsb tiles", "dali_rsb"), ("dali_rsb tiles plain", "FFCV plain")} <= pairs


def _loader_group_with_a_pack(task, path):
    from benchmarks.loader import loader_group

    return loader_group(task, packs={"tiles": path})


def test_packs_are_given_by_name(tmp_path):
    from benchmarks.loader import named_packs

    assert list(named_packs([f"tiles={tmp_path}"])) == [("tiles", tmp_path)]
    for wrong in ("tiles", f"tiles={tmp_path}/missing"):
        with pytest.raises(UserError, match="NAME=FOLDER"):
            list(named_packs([wrong]))


def test_some_candidates_alone_are_measured_and_compared(task, tmp_path):
    from benchmarks import peer_loaders

    form = peer_loaders.Stored(packs={"tiles": tmp_path})
    group = peer_loaders.matching(peer_loaders.anything_goes_group(task, form), ["tiles", "FFCV"])
    assert "dali_rsb tiles plain" in group.candidates
    assert all("tiles" in name or "FFCV" in name for name in group.candidates)
    assert {pair.ours for pair in group.comparisons} == {"dali_rsb tiles plain"}
    with pytest.raises(UserError, match="no candidate is named like nothing or this"):
        peer_loaders.matching(group, ["nothing", "this"])


def test_the_requirements_of_the_peers_are_pinned():
    lines = (ROOT / "benchmarks/peers.txt").read_text().splitlines()
    pinned = [line for line in lines if line and not line.startswith("#")]
    assert all("==" in line for line in pinned)
    assert {"ffcv", "litdata", "mosaicml-streaming", "spdl"} <= {p.split("==")[0] for p in pinned}
