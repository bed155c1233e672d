"""Prior folders: the safe native format, and one door for native and released files."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from sweettok.priors.graph import Prior, WordGraph
from sweettok.priors.released import RELEASED_NAMES, find_released, load_released

NATIVE_NAMES = {"spatial": "spatial.safetensors", "temporal": "temporal.safetensors"}
FORMAT = "sweettok word graph 1"


def save_prior(prior: Prior, folder: str | Path) -> None:
    """Write `spatial.safetensors` and `temporal.safetensors` into `folder`; the same prior gives the same bytes."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for side, name in NATIVE_NAMES.items():
        _save_graph(getattr(prior, side), folder / name)


def load_prior(folder: str | Path) -> Prior:
    """Read a folder that holds the native files or the released pickles (read without running them).

    Where both are present the native files are read and a log line says so. Raises FileNotFoundError naming the
    expected files, ValueError when a file's content is wrong.
    """
    folder = Path(folder)
    native = {side: folder / name for side, name in NATIVE_NAMES.items()}
    present = [path for path in native.values() if path.is_file()]
    released = find_released(folder)
    if len(present) == len(native):
        if any(released.values()):
            logging.getLogger(__name__).warning(
                "%s holds native and released priors: reading %s", folder, " and ".join(NATIVE_NAMES.values())
            )
        return Prior(**{side: _load_graph(path) for side, path in native.items()})
    if all(released.values()):
        return load_released(folder)
    found = [path.name for path in (*present, *filter(None, released.values()))]
    raise FileNotFoundError(
        f"no complete prior in {folder} (found: {', '.join(found) or 'neither file'}). Expected "
        f"{' and '.join(NATIVE_NAMES.values())} (made by `python -m sweettok.priors build` or `convert`), or the "
        f"published {' and '.join(names[0] for names in RELEASED_NAMES.values())}"
    )


def _save_graph(graph: WordGraph, path: Path) -> None:
    tensors = {"vectors": graph.vectors.contiguous(), "edges": graph.edges.contiguous()}
    if graph.counts is not None:
        tensors["counts"] = graph.counts.contiguous()
    words = {"format": FORMAT, "modifiers": graph.modifiers, "heads": graph.heads}
    if graph.origin:
        words["origin"] = graph.origin
    aside = path.with_name(path.name + ".tmp")
    # One metadata key only: safetensors does not keep the order of several, and equal priors shall be equal files.
    aside.write_bytes(save(tensors, metadata={"words": json.dumps(words)}))
    os.replace(aside, path)


def _load_graph(path: Path) -> WordGraph:
    try:
        with safe_open(path, framework="pt") as file:
            words = json.loads((file.metadata() or {}).get("words", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a readable word graph: {error}") from error
    if not isinstance(words, dict) or words.get("format") != FORMAT or not {"vectors", "edges"} <= tensors.keys():
        raise ValueError(f"{path} is a safetensors file, but not a {FORMAT!r}")
    try:
        return WordGraph(tuple(words["modifiers"]), tuple(words["heads"]), **tensors, origin=words.get("origin", ""))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
