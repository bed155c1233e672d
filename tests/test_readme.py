"""What the README shows works, and what it names is there."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
from quickstart import write_outputs

from sweettok.data.reader import count_frames

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def code(language: str) -> list[str]:
    return [text for kind, text in BLOCKS if kind == language]


def section(title: str) -> str:
    return re.search(rf"^## {title}\n(.*?)(?=^## )", README, re.MULTILINE | re.DOTALL)[1]


def commands() -> list[tuple[str, ...]]:
    """Every `sweettok ...`, and `python -m sweettok....` of other modules, of the shell blocks and of the text."""
    lines = [line for text in code("bash") for line in text.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL))
    lines = [line for line in lines if line.startswith(("python -m sweettok", "sweettok ")) and line != "sweettok "]
    return sorted({tuple(shlex.split(line.removeprefix("python -m "), comments=True)) for line in lines})


def test_python_blocks_run(tmp_path, monkeypatch):
    """One after the other, in a folder that looks as the quickstart leaves it; what comments say of shapes is so."""
    write_outputs(tmp_path)
    monkeypatch.chdir(tmp_path)
    blocks = code("python")
    assert blocks
    names: dict = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    tok, out, clip = names["tok"], names["out"], names["clip"]
    assert names["video"].shape == (1, *clip.shape) and names["new"].shape == (2, *clip.shape)
    assert out.ids.shape == (1, tok.num_tokens()) == names["vectors"].shape[:2]
    assert out.words(max_queries=3).keys() == names["told"].keys() == {"spatial", "temporal"}
    assert names["whole"].shape == (3, 24, 32, 32) and count_frames(names["file"]) == 24  # as the files are
    assert names["middle"].shape == clip.shape and tok.encode(clip[None]).ids.equal(tok.encode(names["path"]).ids)
    assert names["table"].vectors.shape == (tok.vocab_size, names["vectors"].shape[2])
    assert names["table"].from_table(names["rows"]).equal(out.ids)
    assert (names["larger"].config.height, names["larger"].config.width) == (96, 96)
    assert {path.name for path in Path("outputs/tiny/copy").iterdir()} == {
        "config.json", "model.safetensors", "README.md"
    }  # fmt: skip


def test_files_exist():
    named = set(re.findall(r"(?<![\w/.-])((?:scripts|configs|sweettok|tests)/[\w./-]*\w|run_\w+\.sh|LICENSE)", README))
    assert {"scripts/quickstart.sh", "configs/stage1/ucf101.yaml", "run_eval.sh"} <= named
    assert not sorted(name for name in named if not (ROOT / name).exists())
    assert all((ROOT / name / "README.md").is_file() for name in ("checkpoints", "codebook_priors"))


def test_reading_order_names_files():
    files = re.findall(r"`([^`]+)`", section("Read the code in this order"))
    assert len(files) > 5 and all((ROOT / name).is_file() for name in files)


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_and_their_options_exist(words, capsys):
    program, *arguments = words
    module = "sweettok.cli.main" if program == "sweettok" else f"{program}.__main__"
    group = program == "sweettok" and hasattr(importlib.import_module(f"sweettok.cli.{arguments[0]}"), "COMMANDS")
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(module).main([*arguments[: 2 if group else 1], "--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert not [word for word in arguments if word.startswith("--") and word not in printed]
