"""Few-shot tasks: n classes, k labelled clips of each, and clips to classify.

Episode i depends only on the seed, i, the sizes and the labelled clips, so that fewer episodes are the first of more.
Files name clips by key and classes by name: one file serves every tokenizer that encoded the same clips.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sweettok.data.lists import some
from sweettok.store import write_aside

FORMAT = 1
Labelled = list[tuple[str, str]]  # key and class name of each clip


@dataclass(frozen=True)
class EpisodeConfig:
    """num: episodes. n_way: classes of each. k_shot: examples of a class. queries: clips of an episode to classify."""

    n_way: int = 5
    k_shot: int = 1
    queries: int = 5
    num: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("n_way", 2), ("k_shot", 1), ("queries", 1), ("num", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name.replace('_', '-')} must be at least {least}, got {getattr(self, name)}")


@dataclass(frozen=True)
class Episode:
    """classes: names. support: keys of the examples of each class. queries: (key, index of its class)."""

    classes: tuple[str, ...]
    support: tuple[tuple[str, ...], ...]
    queries: tuple[tuple[str, int], ...]

    @property
    def keys(self) -> list[str]:
        """All clips: examples, then queries."""
        return [key for shown in self.support for key in shown] + [key for key, _ in self.queries]


def draw(labelled: Labelled, config: EpisodeConfig) -> tuple[Episode, ...]:
    """Draw episodes; no clip is in an episode twice, and the classes take turns in the queries.

    Raises ValueError if too few classes have the clips that an episode needs.
    """
    by_class: dict[str, list[str]] = defaultdict(list)
    for key, name in labelled:
        by_class[name].append(key)
    each = config.k_shot + -(-config.queries // config.n_way)
    large = sorted(name for name, keys in by_class.items() if len(keys) >= each)
    if len(large) < config.n_way:
        sizes = ", ".join(f"{name} {len(by_class[name])}" for name in sorted(by_class)[:20])
        raise ValueError(
            f"{config.n_way}-way {config.k_shot}-shot episodes with {config.queries} queries need {config.n_way} "
            f"classes of at least {each} clips, there are {len(large)} (clips of each class: {sizes})"
        )
    episodes = []
    for number in range(config.num):
        rng = random.Random(f"{config.seed} {number}")
        classes = rng.sample(large, config.n_way)
        keys = [rng.sample(by_class[name], each) for name in classes]
        turns = rng.sample(range(config.n_way), config.n_way)
        queries = ((turns[i % config.n_way], config.k_shot + i // config.n_way) for i in range(config.queries))
        support = tuple(tuple(of_class[: config.k_shot]) for of_class in keys)
        episodes.append(Episode(tuple(classes), support, tuple((keys[place][shot], place) for place, shot in queries)))
    return tuple(episodes)


def labelled_clips(
    keys: Sequence[str], labels: Sequence[int] | None, class_names: Sequence[str] | None, source: str
) -> Labelled:
    """(key, class name) pairs; ValueError for clips without labels or class names, and for repeated keys."""
    if labels is None or class_names is None:
        missing = "labels" if labels is None else "class names"
        raise ValueError(f"{source} has no {missing}: give a list that has them (and --classes FILE), or --labels FILE")
    if len(set(keys)) < len(keys):
        raise ValueError(f"{source} has several clips with the same name: episodes need distinct names")
    return [(key, class_names[label]) for key, label in zip(keys, labels, strict=True)]


def read_labels(path: str | Path, keys: Sequence[str]) -> Labelled:
    """Pairs from lines `key TAB class name`; ValueError for malformed lines and clips that are not among `keys`."""
    pairs = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        fields = [text.strip() for text in line.split("\t")]
        if len(fields) != 2 or not all(fields):
            raise ValueError(f"{path}, line {number}: expected 'key TAB class name', got {line!r}")
        pairs.append((fields[0], fields[1]))
    repeated = [key for key, times in Counter(key for key, _ in pairs).items() if times > 1]
    if repeated:
        raise ValueError(f"{path}: {len(repeated)} clips have several labels{some(repeated)}")
    check_keys([key for key, _ in pairs], keys, str(path))
    return pairs


def check_keys(named: Sequence[str], keys: Sequence[str], source: str) -> None:
    """Raise ValueError unless all clips that a file names are among `keys`."""
    unknown = sorted(set(named) - set(keys))
    if unknown:
        raise ValueError(f"{source}: {len(unknown)} clips are not among the {len(keys)} of the data{some(unknown)}")


def episodes_hash(episodes: Sequence[Episode]) -> str:
    """SHA-256 of the tasks, whatever file they came from."""
    return hashlib.sha256(json.dumps([asdict(episode) for episode in episodes]).encode()).hexdigest()


def write(path: str | Path, episodes: Sequence[Episode], config: EpisodeConfig) -> None:
    """Write a file of episodes. ValueError if it exists with others: answers beside it belong to those."""
    path = Path(path)
    if path.is_file():
        if read(path)[0] != tuple(episodes):
            raise ValueError(f"{path} holds other episodes: choose another folder, or use them with --use {path}")
        return
    tasks = [asdict(episode) for episode in episodes]
    content = {"kind": "episodes", "format": FORMAT, "settings": asdict(config), "episodes": tasks}
    with write_aside(path) as aside:
        aside.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


def read(path: str | Path) -> tuple[tuple[Episode, ...], EpisodeConfig]:
    """Episodes and their settings. FileNotFoundError, or ValueError for a file of another kind."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, this version reads {FORMAT}")
        episodes = []
        for one in content["episodes"]:
            support, queries = tuple(map(tuple, one["support"])), tuple((key, place) for key, place in one["queries"])
            episodes.append(Episode(tuple(one["classes"]), support, queries))
        return tuple(episodes), EpisodeConfig(**content["settings"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a file of episodes: {error}") from error
