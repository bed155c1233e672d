"""Words are counted by kind, with the cells of their queries, and drawn there."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
import word_shards
from PIL import Image

from sweettok.cli.main import main
from sweettok.data.reader import probe
from sweettok.data.writer import write_video
from sweettok.pixels import to_uint8
from sweettok.tokenizer.histograms import word_counts
from sweettok.tokenizer.output import TokenOutput, WordCount
from sweettok.words import summary
from sweettok.words.overlay import LINE, overlay


@pytest.fixture(scope="module", params=["modifiers_and_head", "union", "image"])
def output(request):
    """A batch of two clips, or images."""
    config = tiny.union_config() if request.param == "union" else tiny.tokenizer_config()
    model = tiny.tokenizer(config)
    clips = tiny.clips(0, 1)
    return model.encode(clips[:, :, :1] if request.param == "image" else clips)


def words_of_queries(output: TokenOutput, clip: int) -> dict[tuple[str, int], list[str]]:
    """The result of `TokenOutput.words` as (branch, query) -> words."""
    return {
        (branch, number): text.replace("|", " ").split()
        for branch, texts in output.words(clip).items()
        for number, text in enumerate(texts)
    }


@pytest.mark.parametrize("clip", [0, 1])
def test_every_word_is_counted_at_its_place(output, clip):
    columns = {"spatial": 2, "temporal": 4}
    expected = sorted(
        (word, divmod(number, columns[branch]))
        for (branch, number), words in words_of_queries(output, clip).items()
        for word in words
    )
    counted = output.summary(clip)
    found = sorted((w.word, place) for kind in counted.values() for w in kind for place in w.places)
    assert found == expected
    # the words of the tiny prior begin with the name of their kind
    assert {w.word.rstrip("0123456789") for w in counted["adverb"]} <= {"adv"}
    for kind, entries in counted.items():
        assert all(w.word.startswith(kind[:3]) for w in entries)
        assert [w.count for w in entries] == sorted((w.count for w in entries), reverse=True)
        assert all(w.count == len(w.places) for w in entries)
        assert not entries or sum(w.share for w in entries) == pytest.approx(1)
    assert output.summary(clip, top=2) == {kind: entries[:2] for kind, entries in counted.items()}


def test_counts_agree_with_the_summary(output):
    counts, names = word_counts(output.ids, output.layout.vocab_size), output.names
    assert counts.shape == (2, len(names))
    counted = output.summary(1)
    assert {names[i]: int(counts[1, i]) for i in counts[1].nonzero().flatten()} == {
        w.word: w.count for kind in counted.values() for w in kind
    }
    frequent = summary.frequent_words(counts[1], output.layout, names, 2)
    assert frequent == {kind: [w.word for w in entries[:2]] for kind, entries in counted.items()}
    kept = summary.frequent_only(counts, output.layout, 2)[1]
    assert {names[i] for i in kept.nonzero().flatten()} == {word for listed in frequent.values() for word in listed}
    assert torch.equal(kept[kept > 0], counts[1][kept > 0])


def test_places_and_centre():
    word = WordCount("falls", 2, 0.5, ((0, 3), (1, 0)))
    assert word.centre == (0.5, 1.5)


def cells(drawn, grid, panel, size):
    """Corner pixels of each query's cell in one panel: where a cell's frame is, and no text."""
    height, width = size
    rows, columns = grid
    return [
        tuple(drawn[:, 0, row * height // rows, panel * width + column * width // columns].tolist())
        for row in range(rows)
        for column in range(columns)
    ]


def test_overlay_draws_each_query_in_its_cell():
    """Cells of one head word have one colour, those of different words different ones, panel by panel."""
    model = tiny.tokenizer()
    output, grids = model.encode(tiny.clips(0, 1)), model.config.query_grids
    video = torch.zeros(3, 4, 16, 16, dtype=torch.uint8)
    drawn = overlay(video, output, clip=1, cell=20)
    side = 20 * 4  # 16 pixels enlarged five times: cells of 20 pixels on a grid of 4x4
    assert drawn.shape == (3, 4, side + 2 * LINE + 4, 2 * side) and drawn.dtype == torch.uint8
    for panel, branch in enumerate(("temporal", "spatial")):
        heads = [text.split()[-1] for text in output.words(1)[branch]]
        colours = cells(drawn, grids[branch], panel, (side, side))
        assert len(set(heads)) > 1
        assert len(set(zip(heads, colours, strict=True))) == len(set(heads)) == len(set(colours))


def test_overlay_leaves_the_frames_to_be_seen():
    model = tiny.tokenizer()
    output = model.encode(tiny.clip())
    black, white = (torch.full((3, 2, 16, 16), value, dtype=torch.uint8) for value in (0, 255))
    dark, bright = (overlay(video, output, cell=20).int() for video in (black, white))
    inside = np.s_[:, :, 17, 17]  # of the first cell: below its text, off its frame
    assert (bright[inside] - dark[inside] > 100).all()
    panel = dark.shape[3] // 2
    spatial = np.s_[:, :, 30, panel + 30]
    assert (bright[spatial] - dark[spatial] < 100).all()  # darkened


def test_an_image_has_one_panel():
    model = tiny.tokenizer()
    output = model.encode(tiny.clip()[:, :, :1])
    drawn = overlay(torch.zeros(3, 1, 16, 16, dtype=torch.uint8), output, cell=20)
    assert drawn.shape == (3, 1, 80 + 2 * LINE + 4, 80)


def test_overlay_checks_its_input():
    model = tiny.tokenizer()
    output = model.encode(tiny.clip())
    with pytest.raises(ValueError, match="cells must be 12 to 1024 pixels wide where a row has 4, got 5"):
        overlay(torch.zeros(3, 2, 16, 16, dtype=torch.uint8), output, cell=5)
    with pytest.raises(ValueError, match="cells must be 12 to 1024 .* got 4096"):
        overlay(torch.zeros(3, 2, 16, 16, dtype=torch.uint8), output, cell=4096)
    with pytest.raises(ValueError, match=r"expected uint8 pixels \(3, T, H, W\), got torch.float32"):
        overlay(tiny.clip()[0], output)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A tokenizer, a video, a still image, and shards."""
    folder = tmp_path_factory.mktemp("words")
    tiny.tokenizer().save_pretrained(folder / "tokenizer")
    pixels = ((tiny.clip()[0] + 0.5) * 255).to(torch.uint8)
    write_video(folder / "waves.mkv", pixels, 10, lossless=True)
    Image.fromarray(pixels[:, 0].permute(1, 2, 0).numpy()).save(folder / "still.png")
    word_shards.write_shards(folder / "tokens")
    return folder


def test_show_reads_as_encode_does(work, tmp_path):
    """A long, wide video: the same frames, fitted in the same way."""
    path, out, model = tmp_path / "wide.mkv", tmp_path / "words.json", tiny.tokenizer()
    write_video(path, to_uint8(tiny.clip(num_frames=20, width=40))[0], 10, lossless=True)
    given = ["words", "show", str(path), "--checkpoint", str(work / "tokenizer"), "--out", str(out)]
    changes = ["--position", "last", "--resize", "pad", "--stride", "2"]
    for more, options in (([], {}), (changes, {"position": "last", "resize": "pad", "stride": 2})):
        assert main([*given, *more]) == 0
        counted = summary.as_json(model.encode(path, **options).summary())
        assert json.loads(out.read_text())["clips"]["wide"] == json.loads(json.dumps(counted))


def test_show_prints_and_writes_the_summary(work, tmp_path, capsys):
    files = [str(work / "waves.mkv"), str(work / "still.png")]
    out = tmp_path / "words.json"
    given = [*files, "--checkpoint", str(work / "tokenizer"), "--out", str(out)]
    assert main(["words", "show", *given, "--top", "1"]) == 0
    printed, written = capsys.readouterr().out, json.loads(out.read_text())
    pixels = ((tiny.clip() + 0.5) * 255).to(torch.uint8)
    model = tiny.tokenizer()
    counted = model.encode(pixels).summary()
    assert written["grids"] == {"spatial": [2, 2], "temporal": [4, 4]}
    assert written["clips"]["waves"] == json.loads(json.dumps(summary.as_json(counted)))
    assert written["clips"]["still"]["noun"] and not written["clips"]["still"]["verb"]
    first, second = counted["verb"][:2]
    row, column = first.centre
    assert f"{first.word:<20} {first.count:>5}" in printed and f"around row {row:.1f}, column {column:.1f}" in printed
    assert second.word not in {line.split()[0] for line in printed.splitlines() if "around" in line}


def test_show_and_overlay_take_shards(work, tmp_path, capsys):
    shards = ["--tokens", str(work / "tokens"), "--checkpoint", str(work / "tokenizer"), "--rows", "3", "0"]
    assert main(["words", "show", *shards]) == 0
    titles = [line for line in capsys.readouterr().out.splitlines() if line[0] != " "]
    assert titles == ["00003_bravo_03", "00000_delta_00"]
    assert main(["words", "overlay", *shards, "--out", str(tmp_path), "--cell", "20"]) == 0
    info = probe(tmp_path / "00003_bravo_03.mp4")
    assert info.num_frames == 9
    with Image.open(tmp_path / "00000_delta_00.png") as picture:
        assert picture.size == (160, 80 + 2 * LINE + 4)
    video, tokenizer = tmp_path / "00003_bravo_03.mp4", str(work / "tokenizer")
    before = video.read_bytes()
    assert main(["words", "overlay", str(video), "--checkpoint", tokenizer, "--out", str(tmp_path)]) == 2
    assert "is an input and would be overwritten" in capsys.readouterr().err and video.read_bytes() == before
    assert main(["words", "overlay", *shards, "--out", str(tmp_path), "--cell", "100000"]) == 2
    error = "error: argument --cell: expected a whole number from 12 to 4096, got '100000'"
    assert capsys.readouterr().err.startswith(error)


def test_outputs_do_not_replace_inputs_or_other_files(work, tmp_path, capsys):
    (tmp_path / "words.json").write_text('{"settings": 1}')
    shutil.copy(work / "waves.mkv", tmp_path / "waves.json")
    given = ["words", "show", str(tmp_path / "waves.json"), "--checkpoint", str(work / "tokenizer"), "--out"]
    for out, reason in (
        (work / "tokenizer" / "config.json", "the folder of a saved model"),
        (tmp_path / "words.json", "not a file that this command writes"),
        (tmp_path / "waves.json", "is an input"),
    ):
        before = out.read_bytes()
        assert main([*given, str(out)]) == 2
        assert reason in capsys.readouterr().err and out.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give videos or --tokens"),
        (("a/x.mp4", "b/x.mp4"), "several videos have the same name"),
        (("x.mp4", "--tokens", "y"), "give videos or --tokens"),
        (("--tokens", "TOKENS", "--rows", "30"), "has rows 0 to 29; got 30"),
    ],
)
def test_wrong_clips_are_refused(work, arguments, message, capsys):
    arguments = [str(work / "tokens") if word == "TOKENS" else word for word in arguments]
    assert main(["words", "show", *arguments, "--checkpoint", str(work / "tokenizer")]) == 2
    assert message in capsys.readouterr().err


def test_shards_of_another_tokenizer_are_refused(work, tmp_path, capsys):
    tiny.tokenizer(seed=1).save_pretrained(tmp_path)
    assert main(["words", "show", "--tokens", str(work / "tokens"), "--checkpoint", str(tmp_path)]) == 2
    assert "give that tokenizer" in capsys.readouterr().err


def test_a_word_of_a_union_has_the_same_name_under_its_global_id():
    model, union = tiny.tokenizer(), tiny.tokenizer(tiny.union_config())
    output = model.encode(tiny.clip())
    assert union.encode(tiny.clip()).names == output.names
    assert union.layout.kind_ranges == replace(output.layout, lookup="union").kind_ranges
