"""What README and the manual show works, and what they name exists."""

import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from quickstart import write_outputs

from sweettok.cli.main import build_parser
from sweettok.data.reader import count_frames

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
}
NAMED = r"(?<![\w/.-])((?:scripts|configs|sweettok|tests|docs)/[\w./-]*\w|run_\w+\.sh|LICENSE)"


def code(page: str, language: str) -> list[str]:
    """The blocks of a language on a page; a first line `# doctest: skip` leaves a block out."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", PAGES[page], re.MULTILINE | re.DOTALL)
    return [text for kind, text in blocks if kind == language and not text.startswith("# doctest: skip")]


def commands() -> list[tuple[str, ...]]:
    """Every `sweettok ...` command of shell blocks and of the text."""
    lines = []
    for page, text in PAGES.items():
        lines += [line for block in code(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
        lines += re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))
    lines = [re.sub(r"^bash scripts/launch\.sh -m ", "", line) for line in lines]
    found = {tuple(shlex.split(line, comments=True)[1:]) for line in lines if re.match(r"sweettok [a-z]", line)}
    return sorted(command for command in found if not command[0].startswith("-"))


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """A folder as the quickstart leaves it, with untrained models."""
    folder = tmp_path_factory.mktemp("docs")
    write_outputs(folder)
    return folder


@pytest.mark.parametrize("page", [page for page in PAGES if code(page, "python")])
def test_python_blocks_run(page, outputs, monkeypatch):
    monkeypatch.chdir(outputs)
    names: dict = {}
    for block in code(page, "python"):
        exec(compile(block, page, "exec"), names)
    tok = names["tok"]
    if page == "README.md":
        assert names["out"].ids.shape == (1, tok.num_tokens()) and names["video"].shape[1] == 3
    if page == "docs/demo.md":
        assert names["mixed"].shape == (2, *names["first"].video.shape)
    if page == "docs/long-video.md":
        assert names["whole"].shape == (3, 24, 32, 32) and count_frames(names["file"]) == 24  # as the files are
    if page == "docs/api.md":
        out, clip = names["out"], names["clip"]
        assert names["video"].shape == (1, *clip.shape) and names["new"].shape == (2, *clip.shape)
        assert out.ids.shape == (1, tok.num_tokens()) == names["vectors"].shape[:2]
        assert out.words(max_queries=3).keys() == names["words"].keys() == {"spatial", "temporal"}
        assert names["middle"].shape == clip.shape and tok.encode(clip[None]).ids.equal(tok.encode(names["path"]).ids)
        assert names["table"].vectors.shape == (tok.vocab_size, names["vectors"].shape[2])
        assert names["table"].from_table(names["rows"]).equal(out.ids)
        assert (names["larger"].config.height, names["larger"].config.width) == (96, 96)


def test_readme_is_one_page():
    assert len(PAGES["README.md"].splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES)
def test_files_exist(page):
    named = set(re.findall(NAMED, PAGES[page]))
    assert not sorted(name for name in named if not (ROOT / name).exists())


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_commands_and_their_options_exist(command, capsys):
    inner = getattr(import_module(f"sweettok.cli.{command[0]}"), "COMMANDS", {})
    group = command[:2] if inner and len(command) > 1 else command[:1]
    with pytest.raises(SystemExit) as stopped:
        build_parser(group).parse_args([*group, "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert not [word for word in command if word.startswith("--") and word not in text]


def test_the_manual_builds(tmp_path):
    """Strictly: a broken link or a page that is missing from the menu fails."""
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
