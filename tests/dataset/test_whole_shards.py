"""A shard is read whole, or refused: nothing behind a damage or a cut is lost in silence."""

import bz2
import gzip
import io
import json
import lzma
import re
import subprocess
import tarfile

import numpy as np
import pytest
from PIL import Image

from dali_rsb.dataset import Reading, open_index
from dali_rsb.dataset.tar_samples import list_samples
from dali_rsb.errors import UserError

COUNT = 6
BLOCK = 512


def jpeg(seed):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def packed(members, tar_format=tarfile.USTAR_FORMAT):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def samples(count=COUNT, prefix="", label=str):
    return [
        (f"{prefix}{number}.{suffix}", data)
        for number in range(count)
        for suffix, data in (("jpg", jpeg(number)), ("cls", label(number).encode()))
    ]


def listed(path):
    """Number of the images, or the refusal."""
    try:
        return len(list_samples(path, None).images)
    except UserError as error:
        message = str(error)
        assert message.isprintable()
        return message


@pytest.mark.parametrize(
    "tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
def test_a_shard_that_is_cut_anywhere_is_refused_or_whole(tmp_path, tar_format):
    long_name = "é" * 70 + "x" * 80  # takes headers of its own but in the first format
    prefix = "" if tar_format == tarfile.USTAR_FORMAT else long_name
    data = packed(samples(prefix=prefix), tar_format)
    path = tmp_path / "s-0.tar"
    path.write_bytes(data)
    assert listed(path) == COUNT
    with tarfile.open(path) as tar:
        end = max(m.offset_data + -(-m.size // BLOCK) * BLOCK for m in tar)
    cuts = {cut + shift for cut in range(0, len(data), BLOCK) for shift in (-1, 0, 1, 100)}
    for cut in sorted(cut for cut in cuts if 0 <= cut < len(data)):
        path.write_bytes(data[:cut])
        found = listed(path)
        # One block of zeros is the end, as programs that write one only have it.
        assert isinstance(found, str) if cut < end + BLOCK else found == COUNT, cut


def test_a_damaged_header_is_no_end(tmp_path):
    data = packed(samples())
    rng = np.random.default_rng(0)
    path = tmp_path / "s-0.tar"
    refused = 0
    for _ in range(300):
        position = int(rng.integers(0, len(data)))
        length = int(rng.integers(1, 300))
        damage = rng.bytes(length) if rng.integers(2) else bytes(length)
        path.write_bytes(
            data[:position] + damage[: len(data) - position] + data[position + length :]
        )
        found = listed(path)
        assert isinstance(found, str) or found == COUNT
        refused += isinstance(found, str)
    assert refused > 30


@pytest.mark.parametrize("others", [1, 5])
@pytest.mark.parametrize("padding", [0, 1, 30])
def test_tar_files_put_one_behind_the_other_are_refused(tmp_path, others, padding):
    path = tmp_path / "s-0.tar"
    first, second = packed(samples()), packed(samples(others, "other"))
    path.write_bytes(first + bytes(padding * BLOCK) + second)
    assert "holds more behind its end at byte" in listed(path)
    path.write_bytes(first + bytes(padding * BLOCK))  # zeros are no more
    assert listed(path) == COUNT


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)],
)
def test_a_compressed_shard_named_tar_is_unpacked_by_what_the_refusal_says(
    tmp_path, suffix, compress
):
    path = tmp_path / "s" / "s-0.tar"
    path.parent.mkdir()
    path.write_bytes(compress(packed(samples())))
    message = listed(path)
    assert f"compressed ({suffix})" in message
    command = message.partition("unpack it: ")[2]
    subprocess.run(command, shell=True, check=True)
    assert len(open_index(tmp_path / "s")) == COUNT


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_links_in_shards_are_counted(tmp_path, kind, caplog):
    buffer = io.BytesIO(packed(samples()))
    with tarfile.open(fileobj=buffer, mode="a") as tar:
        member = tarfile.TarInfo("link.jpg")
        member.type, member.linkname = kind, "0.jpg"
        tar.addfile(member)
    path = tmp_path / "s-0.tar"
    path.write_bytes(buffer.getvalue())
    assert open_index(path).left_out == {"links": 1}
    assert "1 left out (1 links)" in caplog.text


def shards(folder, label, suffix="cls"):
    folder.mkdir(exist_ok=True)
    members = [
        (f"{number}.{end}", data)
        for number, value in enumerate(label)
        for end, data in (("jpg", jpeg(number)), (suffix, value.encode()))
    ]
    (folder / "s-0.tar").write_bytes(packed(members))
    return folder


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["cat", "cat", "dog"], "names class cat 2 times"),
        (["cat", "", "dog"], "no name for class 1"),
        (["cat", "dog"], "names 2 classes, but the shards have labels up to 2"),
    ],
)
def test_names_of_classes_beside_shards_are_complete_and_each_its_own(tmp_path, names, words):
    folder = shards(tmp_path / "s", ["0", "2", "1"])
    (folder / "classes.txt").write_text("\n".join([*names, ""]))
    with pytest.raises(UserError, match=words):
        open_index(folder)
    (folder / "classes.txt").write_text("cat\ndog\nfox\nwolf\n")
    assert open_index(folder).classes == ("cat", "dog", "fox", "wolf")


@pytest.mark.parametrize("value", [3.0, True, None, [1], {"a": 1}, ""])
def test_advice_about_json_never_names_what_was_refused(tmp_path, value):
    folder = shards(tmp_path / "s", [json.dumps({"label": value, "id": 7})], "json")
    with pytest.raises(UserError, match=r"as 'label', no class number or name") as caught:
        open_index(folder, reading=Reading(label_key="label"))
    assert "label_key=label" not in str(caught.value)
    with pytest.raises(UserError, match="has no 'other'") as caught:
        open_index(folder, reading=Reading(label_key="other"))
    advice = re.search(r"label_key=([\w ]+)$", str(caught.value))[1].split(" or ")
    assert "id" in advice
    assert open_index(folder, reading=Reading(label_key="id")).labels.tolist() == [7]
