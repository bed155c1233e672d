"""Official split files become our lists, with the official labels."""

import pytest

from sweettok.cli.main import main
from sweettok.data.importers import import_k600, import_ucf101
from sweettok.data.lists import load_clips, read_names

CLASSES = ("ApplyEyeMakeup", "Hammering", "HammerThrow")
TRAIN = ("ApplyEyeMakeup/v_a_g08_c01.avi", "Hammering/v_Hammering_g09_c02.avi", "HammerThrow/v_b_g08_c01.avi")
TEST = ("HammerThrow/v_HammerThrow_g01_c01.avi", "ApplyEyeMakeup/v_ApplyEyeMakeup_g02_c03.avi")


@pytest.fixture
def splits(tmp_path):
    folder = tmp_path / "ucfTrainTestlist"
    folder.mkdir()
    (folder / "classInd.txt").write_text("".join(f"{n} {name}\r\n" for n, name in enumerate(CLASSES, start=1)))
    (folder / "trainlist02.txt").write_text("".join(f"{c} {CLASSES.index(c.split('/')[0]) + 1}\n" for c in TRAIN))
    (folder / "testlist02.txt").write_text("".join(f"{clip}\n" for clip in TEST))
    return folder


def make_files(root, names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


@pytest.mark.parametrize("prefixes", [("", ""), ("train/", "test/")])
def test_ucf101(tmp_path, splits, prefixes):
    files = [prefixes[0] + name for name in TRAIN] + [prefixes[1] + name for name in TEST]
    root = make_files(tmp_path / "UCF-101", files)
    train, val = import_ucf101(root, splits, 2, tmp_path / "lists")
    assert train.read_text().splitlines()[1] == f"{prefixes[0]}Hammering/v_Hammering_g09_c02.avi\t2"
    one, two = (load_clips(path, root, tmp_path / "lists" / "classes.txt") for path in (train, val))
    assert one.labels == (0, 1, 2) and two.labels == (2, 0)
    assert one.class_names == two.class_names == CLASSES
    assert one.keys == tuple(prefixes[0] + name[:-4] for name in TRAIN)


def test_ucf101_errors(tmp_path, splits):
    root = make_files(tmp_path / "UCF-101", TRAIN)
    with pytest.raises(FileNotFoundError, match="2 clips of fold 2 are missing:\n.*HammerThrow_g01_c01"):
        import_ucf101(root, splits, 2, tmp_path / "lists")
    assert not (tmp_path / "lists").exists()
    with pytest.raises(FileNotFoundError, match="trainlist01.txt"):
        import_ucf101(root, splits, 1, tmp_path / "lists")
    with pytest.raises(ValueError, match="folds 1, 2 and 3"):
        import_ucf101(root, splits, 4, tmp_path / "lists")
    for line, message in (
        ("Hammering/v_x.avi 3", "line 1: the label is 3, but Hammering is number 2"),
        ("Juggling/v_x.avi 3", "line 1: expected 'Class/clip.avi'"),
        ("v_x.avi", "line 1: expected 'Class/clip.avi'"),
    ):
        (splits / "trainlist02.txt").write_text(line)
        with pytest.raises(ValueError, match=message):
            import_ucf101(root, splits, 2, tmp_path / "lists")
    (splits / "classInd.txt").write_text("1 ApplyEyeMakeup\n3 Hammering\n")
    with pytest.raises(ValueError, match="without gaps"):
        import_ucf101(root, splits, 2, tmp_path / "lists")


HEADER = "label,youtube_id,time_start,time_end,split\n"


def test_k600(tmp_path):
    root = make_files(
        tmp_path / "k600",
        ["train/zumba/-abc_d_000004_000014.mp4", "train/air_drumming/Xy_000100_000110.mkv", "flat2_000001_000011.webm"],
    )
    source = tmp_path / "k600.csv"
    source.write_text(
        HEADER + "zumba,-abc_d,4,14,train\nair drumming,Xy,100,110,train\nair drumming,gone,7,17,train\n"
        "zumba,flat2,1,11,val\nabseiling,lost,3,13,test\n"
    )
    counts = import_k600(source, root, tmp_path / "lists")
    assert counts == {"train": (2, 1), "val": (1, 0), "test": (0, 1)}
    assert read_names(tmp_path / "lists" / "classes.txt") == ("abseiling", "air drumming", "zumba")
    train = load_clips(tmp_path / "lists" / "train.txt", root, tmp_path / "lists" / "classes.txt")
    assert train.labels == (2, 1)
    assert train.keys == ("train/zumba/-abc_d_000004_000014", "train/air_drumming/Xy_000100_000110")
    assert load_clips(tmp_path / "lists" / "val.txt", root).labels == (2,)
    assert not (tmp_path / "lists" / "test.txt").exists()


def test_k600_splits_in_several_files_share_classes(tmp_path):
    root = make_files(tmp_path / "k600", ["a_000000_000010.mp4", "b_000000_000010.mp4"])
    first, second = tmp_path / "train.csv", tmp_path / "validate.csv"
    first.write_text(HEADER + "archery,a,0,10,train\nzumba,a,0,10,train\n")
    second.write_text(HEADER + "zumba,b,0,10,validate\n")
    import_k600(first, root, tmp_path / "lists")
    import_k600(second, root, tmp_path / "lists")
    assert load_clips(tmp_path / "lists" / "validate.txt", root).labels == (1,)
    second.write_text(HEADER + "bowling,b,0,10,validate\n")
    with pytest.raises(ValueError, match="1 classes are not in .*classes.txt:\n  bowling"):
        import_k600(second, root, tmp_path / "lists")


def test_a_clip_in_several_class_folders_is_taken_from_its_own(tmp_path):
    root = make_files(tmp_path / "k600", ["archery/a_000000_000010.mp4", "zumba/a_000000_000010.mp4"])
    source = tmp_path / "k600.csv"
    source.write_text(HEADER + "zumba,a,0,10,train\narchery,a,0,10,train\n")
    import_k600(source, root, tmp_path / "lists")
    clips = load_clips(tmp_path / "lists" / "train.txt", root)
    assert [path.parent.name for path in clips.paths] == ["zumba", "archery"]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("label,youtube_id\na,b\n", ValueError, "the header must name label, youtube_id, time_start"),
        (HEADER + "a,b,start,10,train\n", ValueError, "line 2: expected"),
        (HEADER + "a,b,0\n", ValueError, "line 2: expected"),
        (
            HEADER + "a,b,0,10,../../evil\n",
            ValueError,
            "line 2: split names a file: .* got '../../evil'",
        ),
        (HEADER + "a,b,0,10,classes\n", ValueError, "line 2: split names a file"),
        (HEADER, ValueError, "no clips"),
        (HEADER + "a,b,0,10,train\n", FileNotFoundError, "none of the 1 clips"),
    ],
)
def test_k600_errors(tmp_path, text, error, message):
    source = tmp_path / "k600.csv"
    source.write_text(text)
    (tmp_path / "k600").mkdir()
    with pytest.raises(error, match=message):
        import_k600(source, tmp_path / "k600", tmp_path / "lists")


def test_outputs_do_not_replace_inputs(tmp_path, splits):
    (splits / "trainlist02.txt").rename(splits / "trainlist01.txt")
    (splits / "testlist02.txt").rename(splits / "testlist01.txt")
    root = make_files(tmp_path / "UCF-101", TRAIN + TEST)
    (tmp_path / "val.txt").symlink_to(splits / "testlist01.txt")
    with pytest.raises(ValueError, match="val.txt is an input and would be overwritten"):
        import_ucf101(root, splits, 1, tmp_path)
    source = tmp_path / "train.txt"
    source.write_text(HEADER + "zumba,a,0,10,train\n")
    with pytest.raises(ValueError, match="train.txt is an input and would be overwritten"):
        import_k600(source, root, tmp_path)


def test_commands(tmp_path, splits, capsys):
    root = make_files(tmp_path / "UCF-101", TRAIN + TEST)
    out = tmp_path / "lists"
    assert main(["data", "import-ucf101", str(root), str(splits), str(out), "--fold", "2"]) == 0
    assert "train.txt: 3 clips" in capsys.readouterr().out
    assert main(["data", "import-ucf101", str(root), str(splits), str(out), "--fold", "3"]) == 2
    assert "no split file at" in capsys.readouterr().err
    source = tmp_path / "k600.csv"
    source.write_text(HEADER + "zumba,a,0,10,train\nzumba,b,0,10,train\n")
    make_files(tmp_path / "k600", ["a_000000_000010.mp4"])
    assert main(["data", "import-k600", str(source), str(tmp_path / "k600"), str(tmp_path / "k600-lists")]) == 0
    assert "train.txt: 1 clips" in (text := capsys.readouterr().out) and "1 clips not found" in text
