"""Few-shot tasks (episodes): n classes, k labelled clips of each, and clips to classify.

Episode i depends only on the seed, i, the sizes and the labelled clips, so a shorter run has the first episodes of a
longer one. Files refer to clips by key and to classes by name, and can be used with any tokenizer.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sweettok.data.lists import ClipList, some
from sweettok.data.tokens import TokenDataset
from sweettok.store import write_aside

FORMAT = 1
Labelled = list[tuple[str, str]]  # key and class name of each clip


@dataclass(frozen=True)
class EpisodeConfig:
    """num: episodes. n_way: classes per episode. k_shot: examples per class. queries: clips to classify per episode."""

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
        """Keys of all clips: examples, then queries."""
        return [key for shown in self.support for key in shown] + [key for key, _ in self.queries]


def draw(labelled: Labelled, config: EpisodeConfig, examples: Labelled | None = None) -> tuple[Episode, ...]:
    """Draw episodes. No clip is in an episode twice; the queries are spread evenly over the classes.

    Args:
        labelled: the clips. examples: other clips to draw the examples from, so that `labelled` has the queries alone.

    Raises ValueError if too few classes have enough clips.
    """
    shown, asked = config.k_shot, -(-config.queries // config.n_way)
    clips = _by_class(labelled)
    pools = [(clips, shown + asked)] if examples is None else [(_by_class(examples), shown), (clips, asked)]
    large = sorted(name for name in clips if all(len(pool.get(name, ())) >= least for pool, least in pools))
    if len(large) < config.n_way:
        sizes = {name: " and ".join(str(len(pool.get(name, ()))) for pool, _ in pools) for name in sorted(clips)[:20]}
        found = ", ".join(f"{name} {size}" for name, size in sizes.items())
        needed = " and ".join(str(least) for _, least in pools)
        of_each = "clips" if examples is None else "clips (examples and queries)"
        raise ValueError(
            f"{config.n_way}-way {config.k_shot}-shot episodes with {config.queries} queries need {config.n_way} "
            f"classes of at least {needed} {of_each}, there are {len(large)} (clips of each class: {found})"
        )
    episodes = []
    for number in range(config.num):
        rng = random.Random(f"{config.seed} {number}")
        classes = rng.sample(large, config.n_way)
        keys = [[key for pool, number in pools for key in rng.sample(pool[name], number)] for name in classes]
        turns = rng.sample(range(config.n_way), config.n_way)
        queries = ((turns[i % config.n_way], config.k_shot + i // config.n_way) for i in range(config.queries))
        support = tuple(tuple(of_class[: config.k_shot]) for of_class in keys)
        episodes.append(Episode(tuple(classes), support, tuple((keys[place][shot], place) for place, shot in queries)))
    return tuple(episodes)


def _by_class(labelled: Labelled) -> dict[str, list[str]]:
    by_class: dict[str, list[str]] = defaultdict(list)
    for key, name in labelled:
        by_class[name].append(key)
    return by_class


def labelled_clips(clips: ClipList | TokenDataset, source: str | Path) -> Labelled:
    """Pairs (key, class name). ValueError without labels or class names, and for repeated keys."""
    if clips.labels is None or clips.class_names is None:
        missing = "labels" if clips.labels is None else "class names"
        raise ValueError(f"{source} has no {missing}: give a list that has them (and --classes FILE), or --labels FILE")
    if len(set(clips.keys)) < len(clips.keys):
        raise ValueError(f"{source} has several clips with the same name: episodes need distinct names")
    return [(key, clips.class_names[label]) for key, label in zip(clips.keys, clips.labels, strict=True)]


def read_labels(path: str | Path, keys: Sequence[str]) -> Labelled:
    """Read lines `key TAB class name`. ValueError for malformed lines and clips that are not among `keys`."""
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
    """Raise ValueError unless all clips of a file are among `keys`."""
    unknown = sorted(set(named) - set(keys))
    if unknown:
        raise ValueError(f"{source}: {len(unknown)} clips are not among the {len(keys)} of the data{some(unknown)}")


def episodes_hash(episodes: Sequence[Episode]) -> str:
    """SHA-256 of the tasks."""
    return hashlib.sha256(json.dumps([asdict(episode) for episode in episodes]).encode()).hexdigest()


def write(path: str | Path, episodes: Sequence[Episode], config: EpisodeConfig) -> None:
    """Write a file of episodes. ValueError if it exists with others, on which saved answers depend."""
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
    """Read episodes and their settings. FileNotFoundError, or ValueError for another kind of file."""
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
        reason = f"it has no entry {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{path} is not a file of episodes: {reason}") from error
