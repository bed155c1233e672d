"""Read and write folders of priors."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from sweettok.priors.graph import SIDES, Prior, WordGraph
from sweettok.priors.released import RELEASED_NAMES, find_released, load_released
from sweettok.store import check_output, check_output_folder, write_aside

NATIVE_NAMES = {side: f"{side}.safetensors" for side in SIDES}
FORMAT = "sweettok word graph 1"


def check_prior_output(folder: str | Path, inputs: Iterable[str | Path] = (), released: bool = False) -> None:
    """Raise ValueError if writing a prior into `folder` would replace inputs or files of another kind."""
    folder = Path(folder)
    check_output_folder(folder, inputs)
    names = [names[0] for names in RELEASED_NAMES.values()] if released else NATIVE_NAMES.values()
    signature = b"\x80" if released else FORMAT.encode()  # in the first bytes of these files
    for name in names:
        check_output(folder / name, owned=lambda path: signature in path.read_bytes()[:200])


def save_prior(prior: Prior, folder: str | Path) -> None:
    """Write `spatial.safetensors` and `temporal.safetensors` into `folder`; equal priors give equal files."""
    for side, name in NATIVE_NAMES.items():
        graph: WordGraph = getattr(prior, side)
        tensors = {"vectors": graph.vectors.contiguous(), "edges": graph.edges.contiguous()}
        if graph.counts is not None:
            tensors["counts"] = graph.counts.contiguous()
        words = {"format": FORMAT, "modifiers": graph.modifiers, "heads": graph.heads}
        if graph.origin:
            words["origin"] = graph.origin
        with write_aside(Path(folder) / name) as aside:
            # A single metadata key, because safetensors does not keep the order of several.
            aside.write_bytes(save(tensors, metadata={"words": json.dumps(words)}))


def load_prior(folder: str | Path) -> Prior:
    """Read a folder with the files of `save_prior`, or else with the published pickles (see `load_released`).

    Raises FileNotFoundError naming the expected files, ValueError for wrong content.
    """
    folder = Path(folder)
    native = {side: folder / name for side, name in NATIVE_NAMES.items()}
    present = [path for path in native.values() if path.is_file()]
    released = find_released(folder)
    if len(present) == len(native):
        if any(released.values()):
            names = " and ".join(NATIVE_NAMES.values())
            logging.getLogger(__name__).warning("%s has native and released priors: reading %s", folder, names)
        return Prior(**{side: _load_graph(path) for side, path in native.items()})
    if all(released.values()):
        return load_released(folder)
    found = [path.name for path in (*present, *filter(None, released.values()))]
    raise FileNotFoundError(
        f"no complete prior in {folder} (found: {', '.join(found) or 'neither file'}). Expected "
        f"{' and '.join(NATIVE_NAMES.values())} (made by `sweettok priors build` or `convert`), or the published "
        f"{' and '.join(names[0] for names in RELEASED_NAMES.values())}"
    )


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
