"""What is no readable file ends in one line; files are replaced whole or not at all."""

import errno
import json
import os
import pickle
import socket
import stat
from pathlib import Path

import pytest

from dali_rsb.errors import UserError
from dali_rsb.system import atomic
from dali_rsb.system.atomic import atomic_directory, atomic_file
from dali_rsb.system.files import (
    MissingFileError,
    UnreadableFileError,
    read_bytes,
    read_json,
    read_parsed,
    read_text,
)

FIX = "restore it from a copy"


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@pytest.mark.timeout(20)  # to open a pipe is to wait for a writer
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "does not exist"),
        (Path.mkdir, "is a directory, no file"),
        (os.mkfifo, "is a pipe or device, no file"),
        (make_socket, r"cannot be read \(No such device or address\)"),
        (lambda path: path.symlink_to(path), r"cannot be read \(Too many levels of symbolic"),
        (lambda path: path.symlink_to("/dev/null"), "is a pipe or device, no file"),
        (lambda path: path.write_bytes(b"a\nb\x80"), r"is not UTF-8 \(byte 0x80 in line 2\)"),
        (lambda path: path.write_text("a\nb", "utf-16"), "is UTF-16, not UTF-8"),
        (lambda path: path.write_bytes(b"a\nb\0\n"), "is no text, line 2 holds a NUL byte"),
        (lambda path: path.write_text("7" * 6000), r"is no JSON \(a number of thousands of digits"),
        (lambda path: path.write_text("[" * 100_000), "is no JSON that can be read, it nests too"),
        (lambda path: path.write_text('{"a":' * 3_000), "is no JSON that can be read, it nests"),
        (lambda path: path.write_text(""), "is no JSON "),
        (lambda path: path.write_text("{'a': 1}"), "is no JSON .*line 1 column 2"),
    ],
)
@pytest.mark.parametrize("name", ["meta.json", "n" * 200, "two\nlines"])
def test_what_cannot_be_read_is_said_in_one_line(tmp_path, monkeypatch, make, reason, name):
    monkeypatch.chdir(tmp_path)  # a socket's path is at most 107 characters long
    path = Path(name)
    if make is make_socket:
        path = path.with_name(name[:80])
    make(path)
    with pytest.raises(UnreadableFileError, match=reason) as caught:
        read_json(path, FIX)
    message = str(caught.value)
    assert isinstance(caught.value, UserError)
    assert message.endswith(f"{caught.value.reason}: {FIX}")
    assert "\n" not in message
    assert len(message) <= 300
    assert isinstance(caught.value, MissingFileError) == (reason == "does not exist")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again)) == (type(caught.value), message)


def test_a_path_with_a_nul_byte():
    with pytest.raises(UnreadableFileError, match=r"a\\x00b is no path \(embedded null byte\)"):
        read_bytes(Path("a\0b"), FIX)


def test_a_file_that_its_user_may_not_read(tmp_path, monkeypatch):
    def refuse(path, *arguments):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UnreadableFileError, match=r"x cannot be read \(Permission denied\)"):
        read_bytes(tmp_path / "x", FIX)


def test_no_descriptor_stays_open(tmp_path):
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        with pytest.raises(UnreadableFileError):
            read_bytes(tmp_path, FIX)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_what_can_be_read(tmp_path):
    path = tmp_path / "file"
    path.write_bytes("\ufeffä\r\n".encode())
    assert read_text(path, FIX) == "ä\r\n"
    path.write_bytes(b"\xff.jpg")
    assert os.fsencode(read_text(path, FIX, errors="surrogateescape")) == b"\xff.jpg"
    path.write_text("[1]")
    assert read_json(path, FIX) == [1]


def test_a_parser_with_errors_of_its_own(tmp_path):
    class ParserError(Exception):
        pass

    def parse(text):
        raise ParserError("line one\nline two " + "x" * 500)

    (tmp_path / "f").write_text("")
    with pytest.raises(UnreadableFileError, match=r"is no YAML \(line one line two x+\.\.\.\)"):
        read_parsed(tmp_path / "f", parse, "YAML", FIX, (ParserError,))


# Replacing


def test_a_file_appears_when_it_is_whole(tmp_path):
    target = tmp_path / "target"
    target.write_text("old")
    with atomic_file(target) as file:
        file.write(b"new")
        file.flush()
        assert target.read_text() == "old"
        (hidden,) = set(tmp_path.iterdir()) - {target}
        assert hidden.name.startswith(".target-")
        assert hidden.name.endswith(".partial")
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_has_the_rights_that_the_umask_leaves(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_file(tmp_path / "target") as file:
            file.write(b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "target").stat().st_mode) == 0o640


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_fails_changes_nothing(tmp_path, error):
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "kept").write_text("old")

    def replace_file():
        with atomic_file(tmp_path / "file") as file:
            file.write(b"new")
            raise error

    def replace_directory():
        with atomic_directory(tmp_path / "folder") as folder:
            (folder / "new").write_text("new")
            raise error

    for replace in (replace_file, replace_directory):
        with pytest.raises(type(error)):
            replace()
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "file",
        "folder",
        "folder/kept",
    ]
    assert (tmp_path / "file").read_text() == "old"


def test_a_directory_in_the_place_of_a_file_is_an_error(tmp_path):
    (tmp_path / "target").mkdir()
    with pytest.raises(IsADirectoryError), atomic_file(tmp_path / "target") as file:
        file.write(b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


@pytest.fixture
def calls(monkeypatch):
    """Names of what was forced to the disk or renamed, in order."""
    found = []
    fsync, replace, rename = os.fsync, Path.replace, Path.rename

    def noted_fsync(descriptor):
        found.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def noted(call):
        def rename_noted(path, target):
            found.append("rename")
            return call(path, target)

        return rename_noted

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted(replace))
    monkeypatch.setattr(Path, "rename", noted(rename))
    return found


def test_content_is_on_the_disk_before_the_name_and_the_name_at_the_end(tmp_path, calls):
    with atomic_file(tmp_path / "file") as file:
        file.write(b"x")
    hidden, rename, parent = calls
    assert hidden.startswith(".file-")
    assert (rename, parent) == ("rename", tmp_path.name)

    calls.clear()
    with atomic_directory(tmp_path / "folder") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text("x")
    position = calls.index("rename")
    assert set(calls[:position]) == {"inner", "file", folder.name}
    assert calls[position + 1 :] == [tmp_path.name]

    calls.clear()
    with atomic_directory(tmp_path / "folder", durable=False) as folder:
        (folder / "file").write_text("x")
    assert set(calls) == {"rename"}


def test_a_filesystem_without_fsync_of_directories(tmp_path, monkeypatch):
    fsync = os.fsync

    def refuse_directories(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(atomic.os, "fsync", refuse_directories)
    with atomic_file(tmp_path / "file") as file:
        file.write(b"x")
    with atomic_directory(tmp_path / "folder") as folder:
        (folder / "meta.json").write_text(json.dumps(1))
    assert (tmp_path / "file").exists()
    assert (tmp_path / "folder" / "meta.json").exists()
