"""Exchange with VBench, which has an environment of its own: folders of videos for it, and scores from its results.

Facts are of VBench 0.1.5: names of files, prompts that several dimensions share, ranges and weights of the scores.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sweettok.store import write_aside

# Dimension: (least, largest, weight). Scores are (score - least) / (largest - least).
QUALITY = {
    "subject_consistency": (0.1462, 1.0, 1.0),
    "background_consistency": (0.2615, 1.0, 1.0),
    "temporal_flickering": (0.6293, 1.0, 1.0),
    "motion_smoothness": (0.706, 0.9975, 1.0),
    "dynamic_degree": (0.0, 1.0, 0.5),
    "aesthetic_quality": (0.0, 1.0, 1.0),
    "imaging_quality": (0.0, 1.0, 1.0),
}
SEMANTIC = {
    "object_class": (0.0, 1.0, 1.0),
    "multiple_objects": (0.0, 1.0, 1.0),
    "human_action": (0.0, 1.0, 1.0),
    "color": (0.0, 1.0, 1.0),
    "spatial_relationship": (0.0, 1.0, 1.0),
    "scene": (0.0, 0.8222, 1.0),
    "appearance_style": (0.0009, 0.2855, 1.0),
    "temporal_style": (0.0, 0.364, 1.0),
    "overall_consistency": (0.0, 0.364, 1.0),
}
DIMENSIONS = (*QUALITY, *SEMANTIC)
# Dimensions that are measured on the videos of another one.
SHARED = {
    **{"motion_smoothness": "subject_consistency", "dynamic_degree": "subject_consistency"},
    **{"background_consistency": "scene"},
    **{"aesthetic_quality": "overall_consistency", "imaging_quality": "overall_consistency"},
}
VIDEOS = 5  # of each prompt
FLICKERING_VIDEOS = 25  # of each prompt of temporal_flickering
LONGEST = 255  # bytes of a file name
LARGEST = 1.001  # of a score; means of cosines may exceed 1 by rounding


def folder_of(dimension: str) -> str:
    """Name of the folder with the videos of a dimension. ValueError for an unknown dimension."""
    if dimension not in DIMENSIONS:
        raise ValueError(f"no dimension {dimension!r} of VBench; there are {', '.join(DIMENSIONS)}")
    return SHARED.get(dimension, dimension)


def file_name(prompt: str, number: int) -> str:
    """Name of video `number` of a prompt, in VBench's own words even if others were given to the model."""
    name = f"{prompt}-{number}.mp4"
    if "/" in prompt or not prompt.strip() or len(name.encode()) > LONGEST:
        raise ValueError(f"{prompt!r} cannot be the name of a file")
    return name


def parse_name(name: str) -> tuple[str, int]:
    """The prompt and number of a file, the inverse of `file_name`."""
    prompt, dash, number = name.removesuffix(".mp4").rpartition("-")
    if not (dash and prompt and number.isdecimal() and name.endswith(".mp4")):
        raise ValueError(f"{name} is not named PROMPT-NUMBER.mp4")
    return prompt, int(number)


def read_prompts(path: str | Path) -> dict[str, tuple[str, ...]]:
    """VBench's own VBench_full_info.json -> {folder: prompts}."""
    found: dict[str, dict[str, None]] = {}
    try:
        for entry in json.loads(Path(path).read_text(encoding="utf-8")):
            for dimension in entry["dimension"]:
                found.setdefault(folder_of(dimension), {})[entry["prompt_en"]] = None
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not VBench's list of prompts (VBench_full_info.json): {error}") from error
    return {folder: tuple(prompts) for folder, prompts in found.items()}


def export(prompts: str | Path, videos: Iterable[tuple[str, Path]], out: str | Path) -> dict[str, tuple[int, int]]:
    """Link or copy videos to `out/<folder>/<prompt>-<number>.mp4`, where VBench expects them.

    Args:
        prompts: VBench_full_info.json. videos: prompt and file of each, in the order of their numbers.

    Returns:
        {folder: (number of videos, number that VBench expects)}.
    """
    folders, of_prompt = read_prompts(prompts), {}
    for prompt, path in videos:
        if path.suffix.lower() != ".mp4" or not path.is_file():
            raise ValueError(f"{path} is no MP4 file")
        of_prompt.setdefault(prompt, []).append(path)
    known = {prompt for listed in folders.values() for prompt in listed}
    if strange := of_prompt.keys() - known:
        raise ValueError(f"{len(strange)} prompts are not of {prompts}, such as {min(strange)!r}")
    counts = {}
    for folder, listed in folders.items():
        most, count = FLICKERING_VIDEOS if folder == "temporal_flickering" else VIDEOS, 0
        for prompt in listed:
            for number, path in enumerate(of_prompt.get(prompt, [])[:most]):
                _link(path, Path(out) / folder / file_name(prompt, number))
                count += 1
        counts[folder] = count, most * len(listed)
    return counts


def _link(source: Path, target: Path) -> None:
    with write_aside(target) as aside:
        try:
            os.link(source, aside)
        except OSError:  # another disk
            shutil.copyfile(source, aside)


def read_results(paths: Sequence[str | Path]) -> dict[str, float]:
    """Scores of dimensions from files `*_eval_results.json`, or folders of them: {dimension: [score, videos]}."""
    files = [file for path in map(Path, paths) for file in (sorted(path.glob("*.json")) if path.is_dir() else [path])]
    scores: dict[str, float] = {}
    times: Counter[str] = Counter()
    for file in files:
        try:
            for dimension, (score, *_) in json.loads(file.read_text(encoding="utf-8")).items():
                folder_of(dimension)
                if not 0 <= score <= LARGEST:  # not NaN either
                    raise ValueError(f"{dimension} is {score}, expected a number from 0 to 1")
                scores[dimension] = float(score)
                times[dimension] += 1
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"{file} is not a result of VBench: {error}") from error
    if twice := [name for name, count in times.items() if count > 1]:
        raise ValueError(f"several files have results of {', '.join(twice)}: give one result of each dimension")
    if not scores:
        raise ValueError(f"no results of VBench in {', '.join(map(str, paths))}")
    return scores


def combine(scores: dict[str, float]) -> dict[str, Any]:
    """Quality, semantic and total score, (4 quality + semantic) / 5, in [0, 1]; None where dimensions are missing."""
    quality, semantic = _mean(scores, QUALITY), _mean(scores, SEMANTIC)
    total = None if quality is None or semantic is None else (4 * quality + semantic) / 5
    missing = [name for name in DIMENSIONS if name not in scores]
    return {"quality": quality, "semantic": semantic, "total": total, "missing": missing}


def _mean(scores: dict[str, float], dimensions: dict[str, tuple[float, float, float]]) -> float | None:
    if not dimensions.keys() <= scores.keys():
        return None
    values = [w * (scores[name] - low) / (high - low) for name, (low, high, w) in dimensions.items()]
    return sum(values) / sum(weight for _, _, weight in dimensions.values())


def summary(report: dict[str, Any]) -> str:
    """The scores of a report as lines of text, in percent as VBench shows them."""
    lines = [f"  {name:24}{value:8.2%}" for name, value in report["dimensions"].items()]
    for name in ("quality", "semantic", "total"):
        value = report["scores"][name]
        lines.append(f"{name:26}" + (f"{value:8.2%}" if value is not None else "       -"))
    if report["scores"]["missing"]:
        lines.append(f"not measured: {', '.join(report['scores']['missing'])}")
    return "\n".join(lines)
