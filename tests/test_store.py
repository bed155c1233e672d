"""Files are written whole or not at all, outputs never replace inputs, and a folder has one owner at a time."""

import json
import os
import subprocess
import sys
from functools import partial

import pytest

from sweettok import store
from sweettok.store import (
    COMMENT,
    InUseError,
    check_output,
    check_output_folder,
    lock,
    remove_asides,
    sha256,
    take_lock,
    write_aside,
)

PNG = b"\x89PNG\r\n\x1a\n" + bytes(30)
MP4 = b"\0\0\0 ftypisom" + bytes(30)
MARK = COMMENT.encode()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def model(folder):
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_text("{}")
    return folder


def test_two_writers_of_one_file_do_not_meet(tmp_path, monkeypatch):
    """Names follow from no process id: in two containers these may be equal."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    path = tmp_path / "deep" / "file.txt"
    with write_aside(path) as one, write_aside(path) as two:
        assert one != two and one.suffix == two.suffix == ".txt"
        one.write_text("one"), two.write_text("two")
    assert path.read_text() == "one" and names(path.parent) == ["file.txt"]
    with pytest.raises(KeyError), write_aside(path) as aside:
        aside.write_text("half")
        raise KeyError
    assert path.read_text() == "one" and names(path.parent) == ["file.txt"]


def test_content_reaches_the_disk_before_the_name(tmp_path, monkeypatch):
    calls = []
    sync, replace = store.sync, os.replace
    monkeypatch.setattr(store, "sync", lambda path: (calls.append(path), sync(path)))
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("rename"), replace(*paths)))
    with write_aside(tmp_path / "a.txt") as aside:
        aside.write_text("a")
    assert calls == [aside, "rename", tmp_path]


def test_what_killed_writers_left_is_removed(tmp_path):
    for name in ("kept.txt", ".a.0123.partial.txt", ".b.0123.partial"):
        (tmp_path / name).touch()
    remove_asides(tmp_path)
    assert names(tmp_path) == ["kept.txt"]


def test_sha256(tmp_path):
    for name, text in (("a", "ab"), ("b", "c"), ("c", "abc")):
        (tmp_path / name).write_text(text)
    assert sha256(tmp_path / "a", tmp_path / "b") == sha256(tmp_path / "c") != sha256(tmp_path / "a")


# ------------------------------------------------------------------------------------------------------------ locks

HOLD = "import sys; from sweettok import store; r = store.take_lock(sys.argv[1]); print('held', flush=True); input()"


def test_a_lock_is_held_by_one_process_until_it_ends(tmp_path):
    path = tmp_path / "folder" / ".owner.lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InUseError, match="folder is in use: another process holds .owner.lock"), lock(path):
            pass
        other.kill()  # no clean end
        other.wait()
        with lock(path), pytest.raises(InUseError):
            take_lock(path)
    take_lock(path)()
    take_lock(path)()


# ---------------------------------------------------------------------------------------------------------- outputs


def aliases(path):
    """Other spellings and links of an existing file."""
    symbolic, hard = path.with_name(f"symbolic{path.suffix}"), path.with_name(f"hard{path.suffix}")
    symbolic.symlink_to(path)
    hard.hardlink_to(path)
    return [path, symbolic, hard, path.parent / "x" / ".." / path.name, os.path.relpath(path)]


def test_an_input_is_no_output(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(MP4 + MARK)
    for alias in aliases(path):
        with pytest.raises(ValueError, match="is an input and would be overwritten"):
            check_output(alias, (".mp4",), [None, str(path)])
        with pytest.raises(ValueError, match="is an input and would be overwritten"):
            check_output(path, (".mp4",), [alias])
    with pytest.raises(ValueError, match="is an input"):  # also one that does not exist yet
        check_output(tmp_path / "new.txt", (), [tmp_path / "new.txt"])
    with pytest.raises(ValueError, match="is in the input"):
        check_output(path, (".mp4",), [tmp_path])
    check_output(tmp_path / "report.json", (".json",), [tmp_path, path])
    check_output(path, (".mp4",), ["user/model"])


def test_files_of_saved_models_are_safe(tmp_path):
    folder = model(tmp_path / "model")
    for name in ("model.safetensors", "config.json", "new.json", "deeper/new.json"):
        with pytest.raises(ValueError, match="the folder of a saved model"):
            check_output(folder / name, owned=lambda path: True)
    for path in (folder, folder / "samples"):
        with pytest.raises(ValueError, match="the folder of a saved model"):
            check_output_folder(path)
    assert names(folder) == ["config.json", "model.safetensors"]
    check_output(tmp_path / "model.json")


@pytest.mark.parametrize(
    ("name", "ours", "others"),
    [
        ("a.json", [b'{"kind": "scan"}', b""], [b'{"name": "my settings"}', b"[1]", b"{", PNG]),
        ("a.png", [PNG + MARK], [PNG, MP4, b"text"]),
        (
            "a.mp4",
            [MP4 + bytes(10**5) + MARK + bytes(10), MP4 + MARK],
            [MP4, PNG, b"text", MP4 + bytes(5000) + MARK + bytes(5000)],
        ),
        ("a.txt", [b"clip.mp4\t1\n"], [PNG]),
        ("a.safetensors", [b""], [b"\x10\0\0\0\0\0\0\0{}"]),  # could be anybody's weights
    ],
)
def test_files_of_other_kinds_are_not_replaced(tmp_path, name, ours, others):
    path = tmp_path / name
    for content in ours:
        path.write_bytes(content)
        check_output(path)
        with pytest.raises(ValueError, match="not a file that this command writes"):
            check_output(path, owned=lambda path: False)
    for content in others:
        path.write_bytes(content)
        with pytest.raises(ValueError, match="exists and would be replaced"):
            check_output(path)
        check_output(path, owned=lambda found, content=content: found.read_bytes() == content)
        assert path.read_bytes() == content


def test_outputs_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("text")
    os.mkfifo(tmp_path / "pipe.txt")
    for name, message in (
        (".", "is a folder: give the name of a file"),
        ("a.mp4", "ends in .json or .md"),
        ("file/a.json", "cannot be written"),
        ("pipe.txt", "a device or a pipe"),
    ):
        with pytest.raises(ValueError, match=message):
            check_output(tmp_path / name, (".json", ".md") if name == "a.mp4" else ())
    for name, message in (("file", "is not a folder"), ("file/out", "cannot be written")):
        with pytest.raises(ValueError, match=message):
            check_output_folder(tmp_path / name)
    with pytest.raises(ValueError, match="is an input"):
        check_output_folder(tmp_path / "x" / "..", [tmp_path])

    def full(**_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(store.tempfile, "TemporaryFile", full)
    for check in (partial(check_output, tmp_path / "a.json"), partial(check_output_folder, tmp_path)):
        with pytest.raises(ValueError, match="cannot be written .Read-only file system.: choose another place"):
            check()


def test_checks_make_the_folder_and_nothing_else(tmp_path):
    check_output(tmp_path / "a" / "b.json", (".json",), [tmp_path / "list.txt"])
    check_output_folder(tmp_path / "c")
    assert names(tmp_path) == ["a", "c"] and not names(tmp_path / "a") and not names(tmp_path / "c")
    (tmp_path / "a" / "b.json").write_text(json.dumps({"kind": "rfvd"}))
    check_output(tmp_path / "a" / "b.json", (".json",), [tmp_path / "list.txt"])
