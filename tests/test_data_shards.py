"""Videos in tar shards: the clips of plain files, in the same order, from a disk, a server or a command."""

import re
import sys
import tarfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from threading import Thread

import pytest
import tiny
import torch
from safetensors.numpy import load_file
from test_data_dataset import numbered

from sweettok.cli.main import main
from sweettok.data import shards
from sweettok.data.backends import ClipError
from sweettok.data.config import DataConfig
from sweettok.data.dataset import ClipDataset, GlobalBatchSampler, make_loader
from sweettok.data.lists import SUFFIXES, load_clips, read_entries
from sweettok.data.reader import read_clip, read_image
from sweettok.data.scan import scan
from sweettok.data.writer import write_png, write_video
from sweettok.inference.tokenize import tokenize
from sweettok.stages.inputs import Inputs

wds = pytest.importorskip("webdataset", reason='not installed: pip install -e ".[webdataset]"')
COUNT = 5  # clips in two shards


class Handler(BaseHTTPRequestHandler):
    """Parts of files; `failures` are the statuses of the next requests, `whole` answers with all of a file."""

    folder, failures, whole, requests = Path(), [], False, 0

    def do_GET(self):
        type(self).requests += 1
        content = (self.folder / self.path.lstrip("/")).read_bytes()
        first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups())
        status = self.failures.pop(0) if self.failures else 200 if self.whole else 206
        status = 416 if status == 206 and first >= len(content) else status
        part = content[first : last + 1] if status == 206 else content if status == 200 else b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *_):
        pass


@contextmanager
def serving(folder: Path):
    handler = type("Here", (Handler,), {"folder": folder, "failures": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """files/: clips and their list; shards-0.tar, shards-1.tar: the same with classes."""
    work = tmp_path_factory.mktemp("work")
    (work / "files").mkdir()
    names = [f"a/{number}.mkv" for number in range(COUNT)]
    for number, name in enumerate(names):
        write_video(work / "files" / name, numbered(number), 10, lossless=True)
    (work / "files/list.txt").write_text("".join(f"{name}\t{n % 2 + 1}\n" for n, name in enumerate(names)))
    for shard, part in enumerate((range(3), range(3, COUNT))):
        with wds.TarWriter(str(work / f"shards-{shard}.tar")) as tar:
            for n in part:
                label = {"cls": n % 2} if shard else {"json": {"label": n % 2, "caption": "a clip"}}
                tar.write({"__key__": f"a/{n}", "mkv": (work / "files" / names[n]).read_bytes(), "txt": "x", **label})
    return work


@pytest.fixture(scope="module")
def served(work):
    """The list of the shards on a server, and its request handler."""
    with serving(work) as (url, handler):
        assert main(["data", "index", url + "/shards-{0..1}.tar", "--out", str(work / "served.txt")]) == 0
        yield work / "served.txt", handler


def batches(clips, world=1, workers=0, done=0, count=4):
    dataset = ClipDataset(clips, 3, 8, position="random", seed=5, substitute=True)
    found = []
    for rank in range(world):
        sampler = GlobalBatchSampler(len(clips), 4, rank, world, 2, seed=5)
        sampler.advance(done)
        found.append(list(islice(make_loader(dataset, sampler, workers), 2 * count // world)))
    return [batch for turn in zip(*found, strict=True) for batch in turn] if world > 1 else found[0]


def same(one, other):
    pairs = zip(one, other, strict=True)
    return all(torch.equal(a["video"], b["video"]) and a["label"].equal(b["label"]) for a, b in pairs)


def test_clips_and_their_order_are_those_of_files(work, served):
    """For one process and two, without and with workers, and from a saved position; a clip is one request."""
    path, handler = served
    files, clips = load_clips(work / "files/list.txt"), load_clips(path)
    assert clips.labels == files.labels and clips.keys[0] == "shards-0/a/0" and clips.keys[4] == "shards-1/a/4"
    plain = batches(files)
    before = handler.requests
    assert same(batches(clips), plain) and handler.requests == before + 16
    assert same(batches(clips, workers=1), plain)
    assert same(batches(clips, world=2), plain)
    assert same(batches(clips, done=2, count=2), plain[4:])


def test_local_shards_and_commands(work, monkeypatch, capsys):
    """Lists of local shards have relative paths. A command prints the bytes that it is asked for."""
    monkeypatch.chdir(work)
    monkeypatch.setenv("SWEETTOK_PIPE", "1")
    script = "import sys; a, b = map(int, sys.argv[2:]); f = open(sys.argv[1], 'rb'); "
    Path("part.py").write_text(script + "f.seek(a); sys.stdout.buffer.write(f.read(b - a + 1))")
    command = f"pipe:{sys.executable} part.py shards-1.tar {{start}} {{end}}"
    assert main(["data", "index", "shards-0.tar", command, "--out", "lists/both.txt"]) == 0
    assert Path("lists/both.txt").read_text().startswith("../shards-0.tar#")
    clips, files = load_clips("lists/both.txt"), load_clips("files/list.txt")
    assert clips.labels == files.labels and clips.keys[4] == "shards-1/a/4"
    for number in (0, 4):
        assert torch.equal(read_clip(str(clips.paths[number]), 5, 16), read_clip(files.paths[number], 5, 16))
    with pytest.raises(ValueError, match="must print the bytes {start} to {end}"):
        shards.fetch("pipe:cat shards-1.tar", 0, 10)
    monkeypatch.setattr(shards, "TIMEOUT", 0)
    with pytest.raises(ClipError, match="did not end in 0 seconds"):
        read_clip(clips.paths[4], 5, 16)
    for value in ("", "yes"):
        monkeypatch.setenv("SWEETTOK_PIPE", value)
        monkeypatch.setattr(shards, "_run", lambda *_: pytest.fail("the command was run"))
        assert main(["data", "index", command, "--out", "lists/other.txt"]) == 2
        assert capsys.readouterr().err.endswith("would run this command; set SWEETTOK_PIPE=1 if you trust it\n")
        with pytest.raises(ValueError, match=r"both.txt, line 4: pipe:.* set SWEETTOK_PIPE=1"):
            load_clips("lists/both.txt")
        with pytest.raises(ValueError, match="set SWEETTOK_PIPE=1") as caught:
            read_clip(clips.paths[4], 5, 16)
        assert not isinstance(caught.value, ClipError)  # for which training takes another clip


def test_what_reads_lists_reads_shards(work, served, tmp_path):
    path, _ = served
    clips, files = load_clips(path), load_clips(work / "files/list.txt")
    size = tiny.proxy_config()
    for seed in (None, 3):
        one, other = (Inputs().clips(str(p), DataConfig(), size, seed) for p in (path, work / "files/list.txt"))
        assert torch.equal(one[1, 2]["video"], other[1, 2]["video"])
    assert scan(read_entries(path)[0], frames=12) == []
    problems = scan(read_entries(path)[0], read_entries(work / "files/list.txt")[0], frames=13)
    assert {problem.kind for problem in problems} == {"short", "shared"} and len(problems) == 2 * COUNT
    model = tiny.tokenizer()
    found = [tokenize(model, each, tmp_path / name, workers=0) for name, each in (("s", clips), ("f", files))]
    assert found[0].class_names == found[1].class_names
    shard = "shard-00000.safetensors"
    assert (load_file(tmp_path / "s" / shard)["ids"] == load_file(tmp_path / "f" / shard)["ids"]).all()


def test_bad_clips_and_servers(work, served, tmp_path, monkeypatch):
    path, handler = served
    monkeypatch.setattr(shards, "WAIT", 0)
    clips = load_clips(path)
    good = read_clip(clips.paths[0], 3, 8)
    handler.failures += [503, 429]
    assert torch.equal(read_clip(clips.paths[0], 3, 8), good)
    handler.failures += [404]
    with pytest.raises(ClipError, match="HTTP status 404") as caught:
        read_clip(clips.paths[0], 3, 8)
    assert str(caught.value).startswith(str(clips.paths[0])) and not caught.value.permanent
    handler.failures += [404]
    item = ClipDataset(clips, 3, 8, substitute=True)[0, 1]
    assert "HTTP status 404" in item["problem"] and item["key"] in clips.keys
    handler.whole = True
    with pytest.raises(ValueError, match="does not send parts of files"):
        read_clip(clips.paths[0], 3, 8)
    handler.whole = False
    shard = tmp_path / "shards.tar"
    with wds.TarWriter(str(shard)) as tar:
        tar.write({"__key__": "broken", "mp4": b"no video" * 99})
        tar.write({"__key__": "clip", "mkv": (work / "files/a/1.mkv").read_bytes()})
    assert main(["data", "index", str(shard), "--out", str(tmp_path / "list.txt")]) == 0
    clips = load_clips(tmp_path / "list.txt")
    assert clips.labels is None
    with pytest.raises(ClipError, match="broken.mp4: PyAV cannot open it"):
        read_clip(clips.paths[0], 3, 8)
    shard.write_bytes(shard.read_bytes()[:3000])
    with pytest.raises(ClipError, match="the shard ends after .* bytes: index the shards again"):
        read_clip(clips.paths[1], 3, 8)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match="clips are missing:\n.*shards.tar"):
        load_clips(tmp_path / "list.txt")


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"cls": b"dog"}, "the class must be a whole number from 0, got b'dog'"),
        ({"json": b'{"label": -1}'}, "the class must be a whole number from 0, got -1"),
        ({}, "1 of 2 clips have no .cls file"),
    ],
)
def test_wrong_labels(tmp_path, capsys, sample, message):
    with wds.TarWriter(str(tmp_path / "x.tar"), encoder=False) as tar:
        tar.write({"__key__": "one", "mp4": b"video", "cls": b"0"})
        tar.write({"__key__": "two", "mp4": b"video", **sample})
    assert main(["data", "index", str(tmp_path / "x.tar"), "--out", str(tmp_path / "list.txt")]) == 2
    assert message in capsys.readouterr().err


def test_what_is_no_shard(tmp_path, capsys):
    (tmp_path / "x.tar").write_text("no tar file" * 99)
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    for name, message in (("x.tar", "not an uncompressed tar"), ("empty.tar", "no videos"), ("no.tar", "no shard at")):
        assert main(["data", "index", str(tmp_path / name), "--out", str(tmp_path / "list.txt")]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match="sweettok data index SHARDS --out LIST"):
        load_clips(tmp_path / "x.tar")


def test_real_files_are_read_as_from_the_disk(videos, tmp_path):
    paths = [*sorted((videos / "odd").iterdir()), videos / "street.avi"]
    write_png(tmp_path / "image.png", numbered(1)[:, 3])
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for path in (*paths, tmp_path / "image.png"):
            tar.add(path, path.name)
    clips = [found.member for found in shards.index_shards([str(tmp_path / "x.tar")], SUFFIXES)]
    assert torch.equal(read_image(clips.pop(), None), read_image(tmp_path / "image.png", None))
    for path, member in zip(paths, clips, strict=True):
        assert member.name == path.name
        for position in ("first", "last"):
            try:
                expected = read_clip(path, 5, 48, position)
            except ClipError as error:
                with pytest.raises(ClipError, match=re.escape(str(error).split(": ")[1])):
                    read_clip(member, 5, 48, position)
            else:
                assert torch.equal(read_clip(member, 5, 48, position), expected)
