"""Models that are part of the package, by name: sweettok/pretrained/NAME/{tokenizer,proxy,generator}."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parent.parent / "pretrained"
NAMES = ("mini",)
FOLDERS = {"ProxyTokenizer": "proxy", "Generator": "generator"}  # by class; "tokenizer" for all others


def is_shipped(name: str, part: str = "tokenizer") -> bool:
    """Whether the files of a model of the package, or of its "proxy" or "generator", are installed."""
    return (ROOT / name / part).is_dir()


def find_shipped(source: str | Path, *models: str) -> str | Path:
    """The folder of a model of the package if `source` is the name of one, otherwise `source`.

    A folder of that name in the working directory comes first, and a `Path` is never a name, as with repositories of
    the Hub.

    Args:
        models: accepted classes, by name; the first decides between the tokenizer, its proxy and its generator.

    Raises FileNotFoundError if the files are not installed.
    """
    if not isinstance(source, str) or source not in NAMES or Path(source).exists():
        return source
    folder = ROOT / source / FOLDERS.get(models[0] if models else "", "tokenizer")
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{source!r} is a model of sweettok, but this installation lacks its files ({folder}): install a version "
            "that has them, or give a folder written by save_pretrained"
        )
    return folder
