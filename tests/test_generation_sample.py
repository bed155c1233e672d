"""The sample command: which samples it draws, what it writes, and what it does not do twice."""

import json
import os
import shutil
import socket
from types import SimpleNamespace

import pytest
import tiny
import torch

from sweettok.cli.main import main
from sweettok.data.lists import clips_hash
from sweettok.data.manifest import TokenManifest
from sweettok.data.reader import probe, read_clip, read_image
from sweettok.data.tokens import ShardWriter, TokenDataset
from sweettok.data.writer import TITLE, enlarge, write_video
from sweettok.generator.config import GeneratorConfig
from sweettok.generator.model import Generator
from sweettok.inference import sample
from sweettok.pixels import to_uint8
from sweettok.store import sha256
from sweettok.tokenizer.model import SweetTok

NAMES = ("fall", "rise / turn", "7")  # one that is no name of a file, one that looks like a number
FRAMES, SIZE = 9, 16


def generator(tokenizer, names=NAMES, **changes):
    config = {"num_classes": 3, "layout": tokenizer.layout, "tokenizer_hash": tokenizer.ids_hash(), **changes}
    return tiny.fill(Generator(GeneratorConfig(dim=16, num_layers=2, num_heads=2, **config), names))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two tokenizers, and generators: of three classes, without guidance, without classes, of frames to come."""
    folder = tmp_path_factory.mktemp("generation")
    tokenizer = tiny.tokenizer()
    tokenizer.save_pretrained(folder / "tok")
    tiny.tokenizer(seed=1).save_pretrained(folder / "other")
    generator(tokenizer).save_pretrained(folder / "gen")
    generator(tokenizer, None, class_dropout=0.0).save_pretrained(folder / "unguided")
    generator(tokenizer, None, num_classes=0).save_pretrained(folder / "free")
    generator(tokenizer, None, num_classes=0, given_frames=5).save_pretrained(folder / "frames")
    return folder


def arguments(folder, out, *more, model="gen", tokenizer="tok"):
    fixed = ("--generator", folder / model, "--tokenizer", folder / tokenizer, "--out", out, "--batch-size", 3)
    return ["sample", *map(str, (*fixed, *more))]


def drawn(folder, out, *more, **options):
    """The samples that a command leaves in `out`."""
    assert main(arguments(folder, out, *more, **options)) == 0
    return TokenDataset(out)


def refusal(capsys, folder, out, *more, **options):
    """What a command that must fail says."""
    assert main(arguments(folder, out, *more, **options)) == 2
    return capsys.readouterr().err


def ids(tokens):
    return torch.stack([tokens[row]["ids"] for row in range(len(tokens))])


def files(out):
    found = (path for path in out.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {path.relative_to(out).as_posix(): path.stat().st_mtime_ns for path in found}


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    """Eight samples with guidance, filters, videos and sheets, in shards of three rows; not to be changed."""
    out = tmp_path_factory.mktemp("finished") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample, "ROWS_PER_SHARD", 3)
        drawn(folder, out, "--num", 8, *SETTINGS)
    return out


SETTINGS = ("--seed", 5, "--cfg-scale", 1.5, "--top-k", 9, "--top-p", 0.95, "--temperature", 0.9, "--fps", 12)


@pytest.fixture
def out(finished, tmp_path, monkeypatch):
    """A copy of `finished`, to go on with."""
    monkeypatch.setattr(sample, "ROWS_PER_SHARD", 3)
    return shutil.copytree(finished, tmp_path / "out")


# --------------------------------------------------------------------------------------------------- what is drawn


def test_shards_hold_the_words_that_sample_gives(folder, finished):
    tokens, model = TokenDataset(finished), Generator.from_pretrained(folder / "gen")
    assert tokens.labels == (0, 1, 2, 0, 1, 2, 0, 1) and tokens.class_names == NAMES
    settings = {"seed": 5, "cfg_scale": 1.5, "top_k": 9, "top_p": 0.95, "temperature": 0.9}
    assert torch.equal(ids(tokens), model.sample(tokens.labels, **settings))
    assert len({tuple(row) for row in ids(tokens).tolist()}) == 8
    manifest = tokens.manifest
    assert (manifest.kind, manifest.num_frames, manifest.num_shards) == ("generated", FRAMES, 3)
    assert manifest.tokenizer_hash == SweetTok.from_pretrained(folder / "tok").ids_hash()
    assert manifest.settings["generator"] == sha256(folder / "gen" / "model.safetensors")
    assert manifest.settings.items() >= {**settings, "cfg_schedule": "constant", "precision": "no"}.items()


@pytest.mark.parametrize(
    ("asked", "labels"),
    [
        (("--per-class", 2), (0, 1, 2, 0, 1, 2)),
        (("--num", 4), (0, 1, 2, 0)),
        (("--num", 3, "--classes", "rise / turn", "0"), (1, 0, 1)),
        (("--per-class", 1, "--classes", "7", "1"), (2, 1)),
    ],
)
def test_classes_get_their_share(folder, tmp_path, asked, labels):
    tokens = drawn(folder, tmp_path / "out", *asked, "--no-videos")
    assert tokens.labels == labels
    assert torch.equal(ids(tokens), Generator.from_pretrained(folder / "gen").sample(labels))
    stems = [("fall", "rise___turn", "7")[label] for label in labels]
    assert list(tokens.keys) == [f"{stem}_{i:06}" for i, stem in enumerate(stems)]


def test_without_classes_samples_are_counted(folder, tmp_path):
    tokens = drawn(folder, tmp_path / "out", "--num", 2, model="free")
    assert tokens.labels is None and tokens.keys == ("sample_000000", "sample_000001")
    assert torch.equal(ids(tokens), Generator.from_pretrained(folder / "free").sample(num_samples=2))
    assert sorted(path.name for path in (tmp_path / "out" / "videos").iterdir()) == [f"{k}.mp4" for k in tokens.keys]


def given_shards(folder, tokenizer, count=4):
    """Clips as ids, with the ids of their first frames beside them."""
    keys, clips = [f"clip{i}" for i in range(count)], tiny.clips(*range(count))
    manifest = TokenManifest(
        "tokenized",
        tokenizer.ids_hash(),
        tokenizer.layout,
        count,
        clips_hash(keys),
        FRAMES,
        given_frames=5,
        rows_per_shard=3,
    )
    writer = ShardWriter(folder, manifest, keys)
    for rows in writer.pending():
        part = clips[rows.start : rows.stop]
        writer.write(rows, tokenizer.encode(part).ids, tokenizer.encode(part[:, :, :5]).ids)
    return TokenDataset(folder)


def test_given_frames_are_continued(folder, finished, tmp_path, capsys):
    model, tokenizer = Generator.from_pretrained(folder / "frames"), SweetTok.from_pretrained(folder / "tok")
    given = given_shards(tmp_path / "given", tokenizer)
    tokens = drawn(folder, tmp_path / "all", "--given", given.folder, model="frames")
    starts = torch.stack([given[row]["given"] for row in range(4)])
    assert torch.equal(ids(tokens), model.sample(given=starts))
    assert not torch.equal(ids(tokens), model.sample(given=starts.flip(0)))
    assert torch.equal(torch.stack([tokens[row]["given"] for row in range(4)]), starts)
    assert tokens.given_frames == 5 and tokens.labels is None
    assert probe(tmp_path / "all" / "videos" / "sample_000003.mp4").num_frames == FRAMES

    fewer = drawn(folder, tmp_path / "two", "--given", given.folder, "--num", 2, "--no-videos", model="frames")
    assert torch.equal(ids(fewer), ids(tokens)[:2])

    def error(*more, **options):
        return refusal(capsys, folder, tmp_path / "none", *more, **{"model": "frames", **options})

    assert "num 5 is more than the 4 rows" in error("--given", given.folder, "--num", 5)
    assert "this generator continues given frames: `given`" in error("--num", 2)
    assert "does not continue given frames" in error("--given", given.folder, "--num", 2, model="gen")
    assert "continues 5 given frames, but" in error("--given", finished)
    other = given_shards(tmp_path / "other", SweetTok.from_pretrained(folder / "other"))
    assert "write the tokens with this one" in error("--given", other.folder)
    assert not files(tmp_path / "none")

    other = given_shards(tmp_path / "more", tokenizer, count=5)
    assert "given" in refusal(capsys, folder, tmp_path / "two", "--given", other.folder, "--num", 2, model="frames")


def test_bf16_is_asked_of_both_models(folder, tmp_path, monkeypatch):
    seen = []
    for model, name in ((Generator, "sample"), (SweetTok, "decode")):
        plain = getattr(model, name)

        def spy(self, *args, plain=plain, **options):
            kind = next(self.parameters()).device.type
            seen.append(torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind))
            return plain(self, *args, **options)

        monkeypatch.setattr(model, name, spy)
    drawn(folder, tmp_path / "half", "--num", 1, "--no-videos", "--precision", "bf16")
    assert seen == [torch.bfloat16] * 2
    drawn(folder, tmp_path / "full", "--num", 1, "--no-videos")
    assert seen[2:] == [False] * 2


# ------------------------------------------------------------------------------------------------ what is decoded


def test_videos_are_the_decoded_clips(folder, finished, tmp_path):
    tokens, tokenizer = TokenDataset(finished), SweetTok.from_pretrained(folder / "tok")
    clips = torch.cat([to_uint8(tokenizer.decode(part)) for part in ids(tokens).split(3)])
    assert sorted(path.stem for path in (finished / "videos").iterdir()) == sorted(tokens.keys)
    for key, clip in zip(tokens.keys, clips, strict=True):
        path = finished / "videos" / f"{key}.mp4"
        info = probe(path)
        assert (info.num_frames, info.height, info.width, info.fps) == (FRAMES, SIZE, SIZE, 12)
        write_video(tmp_path / "same.mp4", clip, 12)
        assert torch.equal(read_clip(path, FRAMES, None), read_clip(tmp_path / "same.mp4", FRAMES, None))


def test_sheets_show_samples_by_class(folder, finished):
    picture = read_image(finished / "contact_sheet.png", None)[:, 0]
    large = sample.SHEET_HEIGHT
    height = TITLE + large
    columns = min(sample.SHEET_FRAMES, FRAMES)
    assert picture.shape == (3, 8 * height, columns * large)
    tokens = TokenDataset(finished)
    clips = to_uint8(SweetTok.from_pretrained(folder / "tok").decode(ids(tokens)))
    for place, row in enumerate((0, 3, 6, 1, 4, 7, 2, 5)):
        last = picture[:, place * height + TITLE : (place + 1) * height, (columns - 1) * large :]
        expected = enlarge(clips[row, :, -1:], large)[:, 0]
        assert (last.int() - expected.int()).abs().max() <= 1, "rounding, at another batch size"
    info = probe(finished / "contact_sheet.mp4")
    assert (info.num_frames, info.height, info.width, info.fps) == (FRAMES, 3 * height, 3 * large, 12)


def test_sheets_are_of_bounded_size():
    assert sample.sheet_rows(None, 3) == [0, 1, 2]
    assert sample.sheet_rows(None, 1000) == list(range(64))
    assert sample.sheet_rows((4, 2) * 9, 18) == [1, 3, 5, 7, 0, 2, 4, 6]
    many = sample.sheet_rows(tuple(i % 30 for i in range(300)), 300)
    assert len(many) == 60 and many[:4] == [0, 30, 1, 31]
    assert sample.sheet_rows(tuple(i % 101 for i in range(500)), 500) == list(range(64))


def test_no_videos_leaves_the_sheets(folder, tmp_path):
    drawn(folder, tmp_path, "--num", 2, "--no-videos")
    assert set(files(tmp_path)) == {
        "manifest.json",
        "clips.txt",
        "shard-00000.safetensors",
        "decoded.json",
        "contact_sheet.png",
        "contact_sheet.mp4",
    }


# ------------------------------------------------------------------------------------------------ going on, refusing


def test_what_is_there_is_not_made_again(folder, finished, out, monkeypatch):
    calls = []
    plain = Generator.sample
    monkeypatch.setattr(Generator, "sample", lambda self, *a, **o: calls.append(o["indices"]) or plain(self, *a, **o))
    before = files(out)
    drawn(folder, out, "--num", 8, *SETTINGS)
    assert files(out) == before and not calls

    gone = ("shard-00001.safetensors", "videos/rise___turn_000004.mp4")
    for name in gone:
        (out / name).unlink()
    drawn(folder, out, "--num", 8, *SETTINGS)
    after = files(out)
    assert calls == [[3, 4, 5]]
    assert {name for name in after if after[name] != before.get(name)} == set(gone) and after.keys() == before.keys()
    assert (out / gone[0]).read_bytes() == (finished / gone[0]).read_bytes()
    first, again = (read_clip(path / gone[1], FRAMES, None).float() for path in (finished, out))
    assert (first - again).abs().mean() < 2, "rounding, at another batch size"


def test_a_stop_costs_no_more_than_the_shard_begun(folder, finished, tmp_path, monkeypatch):
    """Batches of five reach over shards of three: stopped in the second batch, the first shard stays."""
    monkeypatch.setattr(sample, "ROWS_PER_SHARD", 3)
    plain, calls = Generator.sample, []

    def stopping(self, *args, **options):
        calls.append(list(options["indices"]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain(self, *args, **options)

    monkeypatch.setattr(Generator, "sample", stopping)
    command = arguments(folder, tmp_path, "--num", 8, *SETTINGS, "--batch-size", 5)
    assert main(command) == 130
    assert main(command) == 0
    assert calls == [[0, 1, 2, 3, 4], [5, 6, 7, 7, 7], [3, 4, 5, 6, 7]]
    assert torch.equal(ids(TokenDataset(tmp_path)), ids(TokenDataset(finished)))


def test_other_settings_are_refused(folder, out, capsys):
    before = files(out)

    def error(*more, num=8, **options):
        return refusal(capsys, folder, out, "--num", num, *SETTINGS, *more, **options)

    assert "seed 5 instead of 6" in error("--seed", 6)
    assert "cfg_scale 1.5 instead of 2.0, top_k 9 instead of 4" in error("--cfg-scale", 2, "--top-k", 4)
    assert "precision no instead of bf16" in error("--precision", "bf16")
    assert "samples 8 instead of 9" in error(num=9)
    assert "classes [0, 1, 2] instead of [0]" in error("--classes", 0)
    assert "clips_hash" in error("--classes", 1, 0, 2)
    wording = error("--fps", 10)
    assert "fps 12.0 instead of 10.0" in wording and "delete its videos, contact_sheet.png" in wording
    tiny.fill(model := Generator.from_pretrained(folder / "gen"), seed=1)
    model.save_pretrained(out.parent / "gen")
    shutil.copytree(folder / "tok", out.parent / "tok")
    assert "holds samples with generator " in refusal(capsys, out.parent, out, "--num", 8, *SETTINGS)
    assert files(out) == before


def test_a_tokenizer_with_another_decoder_makes_no_videos_beside_the_first_s(folder, out, tmp_path, capsys):
    tokenizer = SweetTok.from_pretrained(folder / "tok")
    with torch.no_grad():
        tokenizer.decoder.mask_token.add_(1)
    tokenizer.save_pretrained(tmp_path / "later")
    shutil.copytree(folder / "gen", tmp_path / "gen")
    wording = refusal(capsys, tmp_path, out, "--num", 8, *SETTINGS, tokenizer="later")
    assert "holds videos with tokenizer" in wording
    shutil.rmtree(out / "videos")
    for name in ("contact_sheet.png", "contact_sheet.mp4", "decoded.json"):
        (out / name).unlink()
    before = files(out)
    drawn(tmp_path, out, "--num", 8, *SETTINGS, tokenizer="later")
    assert files(out).items() >= before.items() and len(list((out / "videos").iterdir())) == 8


@pytest.mark.parametrize(
    ("more", "options", "message"),
    [
        (("--num", 2), {"tokenizer": "other"}, "give the tokenizer that made its training shards"),
        (("--num", 2), {"model": "tok"}, "'SweetTok', expected 'Generator'"),
        (("--num", 2, "--classes", "fly"), {}, "no class 'fly'; this generator's classes are fall, rise / turn, 7"),
        (("--num", 2, "--classes", "3"), {}, "numbered 0..2 (fall, rise / turn, 7); got 3"),
        (("--num", 2, "--classes", "3"), {"model": "unguided"}, "numbered 0..2; got 3"),
        (("--num", 2, "--cfg-scale", 2), {"model": "unguided"}, "class_dropout above 0"),
        (("--num", 2, "--top-p", 2), {}, "top_p must be in (0, 1]"),
        (("--num", 0), {}, "--num: expected a whole number of at least 1, got '0'"),
        (("--per-class", -1), {}, "--per-class: expected a whole number of at least 1, got '-1'"),
        (("--num", 2, "--batch-size", 0), {}, "--batch-size: expected a whole number of at least 1, got '0'"),
        (("--num", 2, "--fps", 0), {}, "--fps: expected a number above 0, got '0'"),
        ((), {}, "give num of at least 1, or per_class"),
        ((), {"model": "free"}, "give num"),
        (("--per-class", 2), {"model": "free"}, "has no classes"),
        (("--num", 2, "--classes", "0"), {"model": "free"}, "has no classes"),
    ],
)
def test_wrong_input_is_refused_before_any_work(folder, tmp_path, capsys, monkeypatch, more, options, message):
    monkeypatch.setattr(Generator, "sample", lambda *_, **__: pytest.fail("words were drawn"))
    assert message in refusal(capsys, folder, tmp_path / "out", *more, **options)
    assert not files(tmp_path / "out")


def test_a_tokenizer_without_pixels_is_refused(folder, tmp_path, capsys):
    blind = SweetTok(tiny.tokenizer_config(pixel_path="none"), tiny.prior())
    state = SweetTok.from_pretrained(folder / "tok").state_dict()
    blind.load_state_dict({name: value for name, value in state.items() if not name.startswith("pixel_decoder.")})
    blind.save_pretrained(tmp_path / "blind")
    shutil.copytree(folder / "gen", tmp_path / "gen")
    assert "has no pixel decoder" in refusal(capsys, tmp_path, tmp_path / "out", "--num", 1, tokenizer="blind")
    assert not files(tmp_path / "out")


# ------------------------------------------------------------------------------------------------------- processes


def one_of_two(rank, port, command, folder):
    """One of two processes; leaves the numbers of the samples that it drew."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", OMP_NUM_THREADS="1")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), ACCELERATE_USE_CPU="true")
    plain, seen = Generator.sample, []
    Generator.sample = lambda self, **options: seen.extend(options["indices"]) or plain(self, **options)
    assert main(command) == 0
    (folder / f"rank{rank}.json").write_text(json.dumps(seen))


def test_two_processes_equal_one(folder, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    asked = ("--num", 37, "--batch-size", 5, "--seed", 3)  # shards of 16, 16 and 5 rows
    one, two = tmp_path / "one", tmp_path / "two"
    drawn(folder, one, *asked)
    torch.multiprocessing.spawn(one_of_two, (port, arguments(folder, two, *asked), tmp_path), nprocs=2)
    shares = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert shares == [[*range(16), *range(32, 37), *[36] * 4], [*range(16, 32), *[31] * 4]]
    assert files(one).keys() == files(two).keys() and len(list((two / "videos").iterdir())) == 37
    for name in files(one):
        if name.endswith((".safetensors", ".json", ".txt")):
            assert (one / name).read_bytes() == (two / name).read_bytes(), name


def test_processes_that_do_not_know_of_each_other_are_refused(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("accelerate.PartialState", lambda **_: SimpleNamespace(num_processes=1))
    assert "2 processes were launched, but each sees 1" in refusal(capsys, folder, tmp_path / "out", "--num", 2)
    assert not files(tmp_path / "out")
