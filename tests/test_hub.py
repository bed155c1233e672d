"""The hub, played by a small server that speaks what huggingface_hub asks for single files and commits."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import tiny
import torch
from huggingface_hub import constants
from safetensors.torch import save

from sweettok import Generator, ProxyTokenizer, SweetTok
from sweettok.cli.main import main
from sweettok.data.writer import write_video
from sweettok.generator.config import GeneratorConfig
from sweettok.hub import model_folder
from sweettok.pixels import to_uint8

TOKEN = "hf_right"


class Hub(ThreadingHTTPServer):
    """repos: name -> {revision: {file: bytes}}. Everything may be read, but for `private` and `gated` names, and only
    TOKEN may write. requests: (method, path) of all that came."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos, self.private, self.gated, self.requests = {}, set(), set(), []
        self.address = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def reply(self, status=200, body=b"", **headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    @property
    def known(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def do_GET(self):
        self.server.requests.append((self.command, self.path))
        if self.path.startswith("/api/"):  # who am I, and the like
            return self.reply(200 if self.known else 401, b"{}", Content_Type="application/json")
        user, repo, _, revision, file = self.path.lstrip("/").split("/", 4)
        name = f"{user}/{repo}"
        revisions = self.server.repos.get(name)
        if revisions is None or (name in self.server.private and not self.known):
            return self.reply(401, X_Error_Code="RepoNotFound")
        if name in self.server.gated and not self.known:
            return self.reply(401, X_Error_Code="GatedRepo")
        commits = {commit(files): files for files in revisions.values()} | revisions
        if revision not in commits:
            return self.reply(404, X_Error_Code="RevisionNotFound")
        files = commits[revision]
        if file not in files:
            return self.reply(404, X_Error_Code="EntryNotFound")
        etag = hashlib.sha1(files[file]).hexdigest()
        return self.reply(200, files[file], ETag=f'"{etag}"', X_Repo_Commit=commit(files))

    do_HEAD = do_GET

    def do_POST(self):
        self.server.requests.append((self.command, self.path))
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if not self.known:
            return self.reply(401)
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts == ["api", "repos", "create"]:
            return self.create(json.loads(content))
        if parts == ["api", "validate-yaml"]:
            return self.answer({"errors": [], "warnings": []})
        name, what, revision = "/".join(parts[2:4]), parts[4], parts[5]
        if what == "branch":
            self.server.repos[name][revision] = dict(self.server.repos[name]["main"])
            return self.answer({})
        if what == "preupload":
            files = json.loads(content)["files"]
            modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
            return self.answer({"files": modes})
        assert what == "commit"
        for line in map(json.loads, content.splitlines()):
            if line["key"] == "file":
                value = line["value"]
                self.server.repos[name][revision][value["path"]] = base64.b64decode(value["content"])
        oid = commit(self.server.repos[name][revision])
        return self.answer({"commitUrl": f"{self.server.address}/{name}/commit/{oid}", "commitOid": oid})

    def create(self, wanted):
        name = f"{wanted['organization']}/{wanted['name']}"
        url = {"url": f"{self.server.address}/{name}"}
        if name in self.server.repos:
            return self.answer(url, 409)
        self.server.repos[name] = {"main": {".gitattributes": b""}}
        if wanted.get("private") or wanted.get("visibility") == "private":
            self.server.private.add(name)
        return self.answer(url)

    def answer(self, content, status=200):
        return self.reply(status, json.dumps(content).encode(), Content_Type="application/json")


def commit(files):
    wording = sorted((name, hashlib.sha1(content).hexdigest()) for name, content in files.items())
    return hashlib.sha1(repr(wording).encode()).hexdigest()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """huggingface_hub reads its environment when it is imported, so what it has read is replaced."""
    server = Hub()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.address + "/" + template.split("/", 3)[3])
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    yield server
    server.shutdown()
    server.server_close()


def generator():
    tokenizer = tiny.tokenizer()
    config = GeneratorConfig(
        dim=16, num_layers=1, num_heads=2, layout=tokenizer.layout, num_classes=2, tokenizer_hash=tokenizer.ids_hash()
    )
    return tiny.fill(Generator(config, ("rise", "fall")))


MODELS = {"tokenizer": tiny.tokenizer, "proxy": tiny.proxy, "generator": generator}


def push(model, name="me/model", **options):
    return model.push_to_hub(name, token=TOKEN, **options)


def same(one, other):
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in mine.items())


def report_of(model):
    """What a card reads of a report; tests/test_card.py reads those of the command."""
    weights = hashlib.sha256(save(model.state_dict())).hexdigest()
    psnr = {"mean": 19.8, "interval95": 0.7}
    protocol = {"name": "exact", "num_fake": 32, "paired": True, "frames": 9, "height": 16, "width": 16, "split": "any"}
    return {
        "kind": "rfvd",
        "protocol": protocol,
        "protocol_hash": "0123456789abcdef",
        "rfvd_refused": None,
        "notes": [],
        "results": {"scores": {"reconstruction": {"psnr": psnr}}, "usage": None},
        "weights": {"tokenizer": {"model.safetensors": weights}},
    }


@pytest.mark.parametrize("kind", MODELS)
def test_pushed_and_fetched(kind, hub, tmp_path):
    model = MODELS[kind]()
    address = push(model, training={"stage": kind, "steps": 7})
    files = hub.repos["me/model"]["main"]
    assert address.startswith(f"{hub.address}/me/model/commit/")
    assert files.keys() == {".gitattributes", "README.md", "config.json", "model.safetensors"}
    assert f'{type(model).__name__}.from_pretrained("me/model")' in files["README.md"].decode()
    again = type(model).from_pretrained("me/model")
    assert same(again, model) and again.config == model.config and not again.training
    again.save_pretrained(tmp_path / "local")
    assert {name: (tmp_path / "local" / name).read_bytes() for name in ("config.json", "model.safetensors")} == {
        name: files[name] for name in ("config.json", "model.safetensors")
    }


def test_commands_take_names_of_the_hub(hub, tmp_path, capsys, fresh_accelerator):
    push(tiny.tokenizer())
    write_video(tmp_path / "clip.mkv", to_uint8(tiny.clip())[0], 8, lossless=True)
    command = ["eval", "reconstruct", str(tmp_path / "clip.mkv"), "--out", str(tmp_path / "out"), "--checkpoint"]
    assert main([*command, "me/model"]) == 0 and (tmp_path / "out" / "clip.mp4").is_file()
    folder = model_folder("me/model")
    assert same(SweetTok.from_pretrained(folder), tiny.tokenizer())
    assert model_folder(folder) == model_folder(str(folder)) == folder
    assert folder.name == commit(hub.repos["me/model"]["main"])
    capsys.readouterr()
    for name, wording in (
        ("me/none", "is neither a folder nor a repository that you can read"),
        (str(tmp_path), "holds no config.json"),
    ):
        assert main([*command, name]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {name} ") and wording in error and error.count("\n") == 1


def test_both_files_are_of_one_commit(hub):
    """A push between the two fetches changes neither."""
    push(tiny.proxy())
    ProxyTokenizer.from_pretrained("me/model")
    asked = [path for method, path in hub.requests if "model.safetensors" in path and "resolve" in path]
    assert asked and all(f"/resolve/{commit(hub.repos['me/model']['main'])}/" in path for path in asked)


def test_branches(hub):
    first, second = tiny.proxy(), tiny.proxy(seed=1)
    push(first)
    push(second, revision="long-training", commit_message="more steps")
    assert same(ProxyTokenizer.from_pretrained("me/model"), first)
    assert same(ProxyTokenizer.from_pretrained("me/model", revision="long-training"), second)
    push(first, revision="long-training")
    assert same(ProxyTokenizer.from_pretrained("me/model", revision="long-training"), first)
    with pytest.raises(FileNotFoundError, match=r"^me/model has no revision 'v9'$"):
        ProxyTokenizer.from_pretrained("me/model", revision="v9")


def test_a_folder_of_that_name_wins(hub, tmp_path, monkeypatch):
    push(tiny.proxy())
    monkeypatch.chdir(tmp_path)
    tiny.proxy(seed=1).save_pretrained("me/model")
    assert same(ProxyTokenizer.from_pretrained("me/model"), tiny.proxy(seed=1))
    with pytest.raises(ValueError, match="me/model is a folder, which has no revision 'main'"):
        ProxyTokenizer.from_pretrained("me/model", revision="main")


def test_the_cache_serves_without_a_connection(hub, monkeypatch, tmp_path):
    push(tiny.proxy(), name="me/other")
    push(tiny.proxy())
    for cache in (None, tmp_path / "elsewhere"):
        assert same(ProxyTokenizer.from_pretrained("me/model", cache_dir=cache), tiny.proxy())
    before = len(hub.requests)
    assert same(ProxyTokenizer.from_pretrained("me/model", local_files_only=True), tiny.proxy())
    with pytest.raises(FileNotFoundError, match="^me/other is not a folder.* was not contacted: download"):
        ProxyTokenizer.from_pretrained("me/other", local_files_only=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert same(ProxyTokenizer.from_pretrained("me/model", cache_dir=tmp_path / "elsewhere"), tiny.proxy())
    absent = r"^me/other is not a folder, its config.json is not in the cache, and the Hub cannot be reached or [^\n]*$"
    with pytest.raises(FileNotFoundError, match=absent):
        ProxyTokenizer.from_pretrained("me/other")
    with pytest.raises(OSError, match=r"^me/model: the Hub cannot be used: [^\n]*$"):
        push(tiny.proxy())
    assert len(hub.requests) == before
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.shutdown()
    hub.server_close()
    assert same(ProxyTokenizer.from_pretrained("me/model"), tiny.proxy())
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between huggingface_hub's attempts
    with pytest.raises(FileNotFoundError, match=absent):
        ProxyTokenizer.from_pretrained("me/other")
    with pytest.raises(OSError, match=r"^me/model: the Hub cannot be used: [^\n]*$"):
        push(tiny.proxy())


def test_a_cache_with_half_of_a_model(hub):
    push(tiny.proxy())
    hub.repos["me/model"]["main"].pop("model.safetensors")
    with pytest.raises(FileNotFoundError, match="^me/model holds no model.safetensors of revision [0-9a-f]{40}$"):
        ProxyTokenizer.from_pretrained("me/model")
    with pytest.raises(FileNotFoundError, match="its model.safetensors of revision [0-9a-f]{40} is not in the cache"):
        ProxyTokenizer.from_pretrained("me/model", local_files_only=True)


def test_who_may_read(hub):
    push(tiny.proxy(), name="me/secret", private=True)
    push(tiny.proxy(), name="me/gated")
    hub.gated.add("me/gated")
    for name in ("me/secret", "me/none"):
        wording = (
            f"^{name} is neither a folder nor a repository that you can read: .*private, log in with `hf auth login`"
        )
        with pytest.raises(FileNotFoundError, match=wording):
            ProxyTokenizer.from_pretrained(name)
    with pytest.raises(PermissionError, match="^me/gated is gated: ask for access.*or pass token="):
        ProxyTokenizer.from_pretrained("me/gated")
    for name in ("me/secret", "me/gated"):
        assert same(ProxyTokenizer.from_pretrained(name, token=TOKEN), tiny.proxy())


def test_who_may_write(hub):
    for token in (None, "hf_wrong"):
        with pytest.raises(PermissionError, match="^no permission to read or change me/model on the Hub: log in"):
            tiny.proxy().push_to_hub("me/model", token=token)
    assert not hub.repos


@pytest.mark.parametrize("name", ["model", "me/my/model", "./model", "me/", "me/mo del"])
def test_names_that_no_repository_has(name, hub):
    with pytest.raises(FileNotFoundError, match=f"^there is no folder {name}: give one written by save_pretrained"):
        ProxyTokenizer.from_pretrained(name)
    with pytest.raises(ValueError, match=f"^expected a repository named user/name, got '{name}'$"):
        push(tiny.proxy(), name=name)
    assert not hub.requests


def test_names_that_the_hub_refuses(hub):
    with pytest.raises(ValueError, match=r"^me/mo--del cannot be the name of a repository: [^\n]*$"):
        ProxyTokenizer.from_pretrained("me/mo--del")


def test_other_models_are_refused_before_their_weights_are_fetched(hub):
    push(tiny.proxy())
    with pytest.raises(ValueError, match="^me/model holds 'ProxyTokenizer', expected 'SweetTok'"):
        SweetTok.from_pretrained("me/model")
    hub.repos["me/model"]["main"]["config.json"] = b'{"architectures": ["Bert"]}'
    with pytest.raises(ValueError, match="^me/model holds None, expected 'SweetTok'"):
        SweetTok.from_pretrained("me/model")
    hub.repos["me/model"]["main"] = {}
    with pytest.raises(FileNotFoundError, match="^me/model holds no config.json$"):
        SweetTok.from_pretrained("me/model")
    assert not [path for method, path in hub.requests if "resolve" in path and "model.safetensors" in path]


def test_a_card_edited_on_the_hub_stays(hub, tmp_path):
    push(tiny.proxy())
    files = hub.repos["me/model"]["main"]
    written = files["README.md"]
    push(tiny.proxy(seed=1))
    assert files["README.md"] != written  # it names the new weights
    files["README.md"] += b"\nTrained in Rome.\n"
    edited = files["README.md"]
    push(tiny.proxy())
    assert files["README.md"] == edited and same(ProxyTokenizer.from_pretrained("me/model"), tiny.proxy())


def test_an_edited_card_cannot_show_a_report(hub):
    push(tiny.proxy())
    files = hub.repos["me/model"]["main"]
    files["README.md"] = b"# Mine\n"
    before = dict(files)
    with pytest.raises(ValueError, match="^README.md was edited by hand and is kept, so it cannot show the report"):
        push(tiny.proxy(seed=1), report=report_of(tiny.proxy(seed=1)))
    assert files == before
    files.pop("README.md")
    push(tiny.proxy(seed=1), report=report_of(tiny.proxy(seed=1)))
    assert b"| PSNR, dB | 19.800 +- 0.700 | 32 clips | exact (0123456789ab) |" in files["README.md"]


def test_nothing_is_made_for_the_report_of_other_weights(hub):
    with pytest.raises(ValueError, match="measure these, or omit the report"):
        push(tiny.proxy(), report=report_of(tiny.proxy(seed=1)))
    assert not hub.requests
