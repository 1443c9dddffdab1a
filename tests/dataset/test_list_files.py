"""Lists of images as people write them: read as they are meant, or refused with what puts it right.

No column's name, comment or misplaced label becomes a class.
"""

import itertools
import re
import subprocess

import pytest
from PIL import Image

from dali_rsb.dataset import open_index
from dali_rsb.errors import UserError

IMAGES = ("a.jpg", "b.jpg", "with space.jpg", "sub/c.png", "without_extension")
LABELS = {
    "numbers": ["0", "1", "1", "0", "2"],
    "names": ["cat", "dog", "dog", "cat", "a fox"],
}
EXPECTED = {
    "numbers": (("0", "1", "2"), dict(zip(IMAGES, [0, 1, 1, 0, 2], strict=True))),
    "names": (("a fox", "cat", "dog"), dict(zip(IMAGES, [1, 2, 2, 1, 0], strict=True))),
}
HEADERS = (
    "path\tlabel",
    "image\tclass",
    "sub\tcat_name",  # a folder's name
    "images.list\tlabel",
    "filepath \tlabel ",
    "\ufefffile\tlabel",
    "Image Name\tClass ID",
)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "lists"
    for name in IMAGES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 16)).save(root / name, "PNG" if name.endswith("png") else "JPEG")
    return root


def read(path):
    index = open_index(path, progress=False)
    names = [str(index.path(i).relative_to(path.parent)) for i in range(len(index))]
    return index.classes, dict(zip(names, index.labels.tolist(), strict=True))


def write(path, lines, end="\n"):
    path.write_bytes(end.join([*lines, ""]).encode())
    return path


def lines_of(kind):
    return [f"{image}\t{label}" for image, label in zip(IMAGES, LABELS[kind], strict=True)]


def refusal(path):
    with pytest.raises(UserError) as caught:
        open_index(path, progress=False)
    message = str(caught.value)
    assert len(message) <= 300
    assert message.isprintable()
    return message


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("header", [None, *HEADERS])
def test_a_line_of_column_names_is_left_out(folder, kind, end, header):
    path = write(folder / "l.txt", [*([] if header is None else [header]), *lines_of(kind)], end)
    assert read(path) == EXPECTED[kind]
    assert open_index(path).left_out == ({} if header is None else {"a header line": 1})


@pytest.mark.parametrize("header", HEADERS)
def test_where_names_tell_nothing_the_line_is_refused(folder, header):
    lines = ["without_extension\tcat", "b.jpg\tdog"]
    path = write(folder / "l.txt", [header, *lines])
    assert "line 1 of" in refusal(path)
    assert "remove the line if it names the columns" in refusal(path)
    assert read(write(path, lines))[0] == ("cat", "dog")  # the fix


@pytest.mark.parametrize("kind", LABELS)
def test_a_first_image_that_is_missing_is_no_header(folder, kind, caplog):
    lines = lines_of(kind)
    first = LABELS[kind][0]
    path = write(folder / "l.txt", [f"gone.jpg\t{first}", *lines])
    assert read(path) == EXPECTED[kind]
    assert open_index(path).left_out == {"missing": 1}
    assert "gone.jpg" in caplog.text
    path = write(folder / "m.txt", [f"gone\t{first}", *lines])  # its label occurs again
    assert open_index(path).left_out == {"missing": 1}


def commands(message):
    """The program that a message names."""
    return re.search(r"(sed|awk|cut) .* LIST( > OTHER)?", message)[0]


def follow(message, path):
    """Do what a message says, and give the new list."""
    command = commands(message).replace("LIST", path.name).replace("OTHER", "other.txt")
    subprocess.run(command, shell=True, cwd=path.parent, check=True)
    return path.with_name("other.txt") if "other.txt" in command else path


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("separator", [" ", ","])
@pytest.mark.parametrize("header", [False, True])
def test_other_separators_are_refused_with_what_replaces_them(folder, kind, separator, header):
    pairs = [
        (image, label.replace(" ", "_")) for image, label in zip(IMAGES, LABELS[kind], strict=True)
    ]
    lines = [separator.join(pair) for pair in [*([("path", "label")] if header else []), *pairs]]
    path = write(folder / "l.csv", lines)
    classes, labels = read(follow(refusal(path), path))
    expected = EXPECTED[kind]
    assert labels == expected[1]
    assert classes == tuple(name.replace(" ", "_") for name in expected[0])


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("header", [False, True])
def test_labels_in_front_are_refused_with_what_turns_them_round(folder, kind, header):
    images = IMAGES[:4]
    pairs = [("label", "path")] * header + list(zip(LABELS[kind], images, strict=False))
    path = write(folder / "l.txt", ["\t".join(pair) for pair in pairs])
    message = refusal(path)
    assert f"labels before the paths, such as {LABELS[kind][3]!r};" in message  # no column's name
    _, labels = read(follow(message, path))
    assert labels.keys() == set(images)


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("at", range(5))
def test_a_third_column_is_refused_with_what_removes_it(folder, kind, at):
    lines = lines_of(kind)
    lines[at] += "\tfurther"
    path = write(folder / "l.txt", lines)
    assert read(follow(refusal(path), path)) == EXPECTED[kind]


def test_names_may_hold_tabs(folder):
    (folder / "a\tb.jpg").write_bytes((folder / "a.jpg").read_bytes())
    assert read(write(folder / "l.txt", ["a\tb.jpg\t0"])) == (("0",), {"a\tb.jpg": 0})


@pytest.mark.parametrize("pair", list(itertools.combinations(range(5), 2)))
def test_one_image_under_two_labels_is_refused(folder, pair):
    lines = lines_of("names")
    again = [f"{IMAGES[i]}\tanother" for i in pair]
    path = write(folder / "l.txt", [*lines, *again])
    message = refusal(path)
    assert f"lists {IMAGES[pair[0]]!r} under the labels" in message
    assert "'another'" in message
    # The same label again is an image that counts twice.
    path = write(folder / "l.txt", [*lines, *(lines[i] for i in pair)])
    assert len(open_index(path)) == 7


@pytest.mark.parametrize("comment", ["# a list", "#", "// list of images"])
def test_comments_are_refused(folder, comment):
    message = refusal(write(folder / "l.txt", [comment, *lines_of("names")]))
    assert message.startswith("line 1 of ")
    assert repr(comment) in message
