"""Lists: class indices, keys and hashes, and errors that say which line or file is wrong."""

import re

import pytest

from sweettok.data.lists import load_clips, read_names, write_list


@pytest.fixture
def root(tmp_path):
    """Files (empty: lists look at names only) in two class folders that code points and official order sort apart."""
    for name in ("HammerThrow/b.avi", "Hammering/a.avi", "Hammering/c.avi"):
        (tmp_path / "clips" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "clips" / name).touch()
    return tmp_path / "clips"


def written(root, text, name="list.txt"):
    path = root.parent / name
    path.write_text(text, encoding="utf-8")
    return path


def test_labels_of_a_list_count_from_one_and_win(root):
    source = written(root, "Hammering/a.avi\t1\nHammerThrow/b.avi\t2\n")
    clips = load_clips(source, root)
    assert clips.labels == (0, 1)
    assert clips.keys == ("Hammering/a", "HammerThrow/b")
    assert clips.paths == (root / "Hammering/a.avi", root / "HammerThrow/b.avi")
    assert clips.class_names is None and len(clips) == 2
    assert load_clips(source, root, classes=("Hammering", "HammerThrow")).class_names == ("Hammering", "HammerThrow")


def test_folders_are_indexed_in_code_point_order(root):
    clips = load_clips(root)
    assert clips.class_names == ("HammerThrow", "Hammering")
    assert dict(zip(clips.keys, clips.labels, strict=True)) == {"HammerThrow/b": 0, "Hammering/a": 1, "Hammering/c": 1}
    named = load_clips(root, classes=("Hammering", "Other", "HammerThrow"))
    assert dict(zip(named.keys, named.labels, strict=True)) == {"HammerThrow/b": 2, "Hammering/a": 0, "Hammering/c": 0}
    with pytest.raises(ValueError, match="not among the classes:\n  Hammering$"):
        load_clips(root, classes=("HammerThrow", "Other"))


def test_class_folders_may_be_links(root, tmp_path_factory):
    linked = tmp_path_factory.mktemp("linked")
    (linked / "Hammering").symlink_to(root / "Hammering", target_is_directory=True)
    (linked / "HammerThrow").symlink_to(root / "HammerThrow", target_is_directory=True)
    assert load_clips(linked).hash == load_clips(root).hash


def test_list_without_labels_and_default_root(root):
    source = root / "list.txt"
    source.write_text("Hammering/c.avi\r\n\r\nHammering/a.avi\r\n")
    clips = load_clips(source)
    assert clips.labels is None and clips.class_names is None
    assert clips.keys == ("Hammering/c", "Hammering/a")


def test_absolute_paths(root, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "x.mp4"
    other.touch()
    clips = load_clips(written(root, f"{other}\n{root / 'Hammering/a.avi'}\n"), root)
    assert clips.paths == (other, root / "Hammering/a.avi")
    assert clips.keys == (str(other.with_suffix("")).lstrip("/"), "Hammering/a")


def test_csv(root):
    source = written(root, 'note,label,path\nx,2,HammerThrow/b.avi\n"a, b",1,Hammering/a.avi\n', "list.csv")
    clips = load_clips(source, root)
    assert (clips.keys, clips.labels) == (("HammerThrow/b", "Hammering/a"), (1, 0))
    assert load_clips(written(root, "path\nHammering/a.avi\n", "list.csv"), root).labels is None
    with pytest.raises(ValueError, match=r"'path' column.*\['file', 'label'\]"):
        load_clips(written(root, "file,label\na,1\n", "list.csv"), root)
    with pytest.raises(ValueError, match="list.csv, line 3: expected the columns"):
        load_clips(written(root, "path,label\nHammering/a.avi,1\nHammering/c.avi\n", "list.csv"), root)


def test_folder_of_loose_clips(root):
    clips = load_clips(root / "Hammering")
    assert (clips.keys, clips.labels, clips.class_names) == (("a", "c"), None, None)
    (root / "loose.mp4").touch()
    (root / ".hidden.mp4").touch()
    with pytest.raises(ValueError, match="1 clips outside of them:\n  loose.mp4$"):
        load_clips(root)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Hammering/a.avi\t1\nHammering/c.avi\t1\textra\n", "line 2: expected 'path TAB label'"),
        ("Hammering/a.avi\t1\n\t2\n", "line 2: expected 'path TAB label'"),
        ("Hammering/a.avi\tone\n", "line 1: the label must be a whole number from 1, got 'one'"),
        ("Hammering/a.avi\t1.0\n", "line 1: the label must be a whole number"),
        ("Hammering/a.avi\t1\n\nHammering/c.avi\n", "line 3: no label, but other lines have one"),
        ("Hammering/a.avi\t0\n", "labels must be 1..3:\n  .*line 1: 0"),
        ("Hammering/a.avi\t-2\n", "labels must be 1..3:\n  .*line 1: -2"),
        ("Hammering/a.avi\t4\n", "labels must be 1..3:\n  .*line 1: 4"),
        ("Hammering/a.avi\t1\nHammering/a.avi\t1\n", "1 clips are listed more than once:\n  Hammering/a"),
        ("\n", "no clips"),
        ("Hammering/a.avi\t1\nHammering/\0c.avi\t1\n", "line 2: there is a NUL character; expected a text file"),
    ],
)
def test_wrong_lists(root, text, message):
    with pytest.raises(ValueError, match=message):
        load_clips(written(root, text), root, classes=3)


def test_missing_files_are_named(root):
    lines = "".join(f"Hammering/{number}.avi\t1\n" for number in range(14))
    with pytest.raises(FileNotFoundError, match="14 of 14 clips are missing") as caught:
        load_clips(written(root, lines), root)
    assert len(re.findall(r"Hammering/\d+\.avi", str(caught.value))) == 10
    assert "and 4 more" in str(caught.value)
    with pytest.raises(FileNotFoundError, match="import-ucf101"):
        load_clips(written(root, "Hammering/a.avi 1\n"), root)
    with pytest.raises(FileNotFoundError, match="no list file or folder"):
        load_clips(root / "none.txt")


def test_not_a_list(root):
    (root / "clip.mp4").write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match="not a UTF-8 text file"):
        load_clips(root / "clip.mp4")
    with pytest.raises(ValueError, match="root is for list files"):
        load_clips(root, root)
    with pytest.raises(ValueError, match="class names must differ"):
        load_clips(root, classes=("a", "a"))


def test_hash_tells_clips_and_labels_but_not_places(root, tmp_path):
    text = "Hammering/a.avi\t1\nHammerThrow/b.avi\t2\n"
    clips = load_clips(written(root, text), root)
    moved = tmp_path / "moved"
    root.rename(moved)
    again = load_clips(written(moved, text), moved)
    assert again.paths != clips.paths and again.hash == clips.hash
    assert len(clips.hash) == 64
    variants = [
        "Hammering/a.avi\t2\nHammerThrow/b.avi\t2\n",
        "HammerThrow/b.avi\t2\nHammering/a.avi\t1\n",
        "Hammering/c.avi\t1\nHammerThrow/b.avi\t2\n",
        "Hammering/a.avi\nHammerThrow/b.avi\n",
    ]
    hashes = {load_clips(written(moved, variant), moved).hash for variant in variants}
    assert len(hashes | {clips.hash}) == 5


def test_subset_keeps_class_indices(root):
    clips = load_clips(root)
    part = clips.subset([2, 0])
    assert part.keys == (clips.keys[2], clips.keys[0])
    assert part.labels == (clips.labels[2], clips.labels[0])
    assert part.class_names == clips.class_names and part.hash != clips.hash


def test_written_lists_come_back(root):
    entries = [("Hammering/a.avi", 0), ("HammerThrow/b.avi", 4)]
    write_list(root / "new.txt", entries)
    assert (root / "new.txt").read_text() == "Hammering/a.avi\t1\nHammerThrow/b.avi\t5\n"
    assert load_clips(root / "new.txt").labels == (0, 4)
    (root / "classes.txt").write_text("Hammering\n\nHammerThrow \n")
    assert read_names(root / "classes.txt") == ("Hammering", "HammerThrow")


def test_a_link_to_a_folder_that_it_is_in_ends(root):
    """Followed, it would give the same clips until the path is too long."""
    (root / "Hammering" / "again").symlink_to(root, target_is_directory=True)
    (root / "more" / "deep").mkdir(parents=True)
    (root / "more" / "deep" / "self").symlink_to(root / "more", target_is_directory=True)
    (root / "more" / "d.avi").touch()
    (root / "other").symlink_to(root / "Hammering", target_is_directory=True)  # no loop: two names of one folder
    keys = load_clips(root).keys
    assert keys == ("HammerThrow/b", "Hammering/a", "Hammering/c", "more/d", "other/a", "other/c")


def test_images_beside_videos_are_left_out(root):
    for name in ("poster.jpg", "Hammering/a.png"):
        (root / name).touch()
    with pytest.warns(UserWarning, match="its 2 images are left out; .*:\n  Hammering/a.png\n  poster"):
        clips = load_clips(root)
    assert clips.keys == ("HammerThrow/b", "Hammering/a", "Hammering/c")
    (root / "list.txt").write_text("Hammering/a.png\nHammering/c.avi\n")
    assert len(load_clips(root / "list.txt")) == 2
    (root / "images").mkdir()
    (root / "images" / "one.png").touch()
    assert load_clips(root / "images").keys == ("one",)
