"""Few-shot tasks: n classes, k labelled clips of each, and clips to name. The episodes command.

Episode i depends on the seed, i, the sizes and the labelled clips alone, so that fewer episodes are the first of more.
Files name clips by key and classes by name: one file serves every tokenizer that has told the same clips.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sweettok.data.lists import load_clips, some
from sweettok.data.tokens import TokenDataset
from sweettok.store import write_aside

FORMAT = 1


@dataclass(frozen=True)
class EpisodeConfig:
    """num: how many episodes. queries: of each episode, its classes in turn, in an order drawn for each."""

    n_way: int = 5
    k_shot: int = 1
    queries: int = 5
    num: int = 200
    seed: int = 0

    def __post_init__(self):
        for name, least in (("n_way", 2), ("k_shot", 1), ("queries", 1), ("num", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name.replace('_', '-')} must be at least {least}, got {getattr(self, name)}")


@dataclass(frozen=True)
class Episode:
    """classes: names. support: keys of the clips that show each class. queries: (key, place of its class)."""

    classes: tuple[str, ...]
    support: tuple[tuple[str, ...], ...]
    queries: tuple[tuple[str, int], ...]

    @property
    def keys(self) -> list[str]:
        return [key for shown in self.support for key in shown] + [key for key, _ in self.queries]


def draw(labelled: Sequence[tuple[str, str]], config: EpisodeConfig) -> tuple[Episode, ...]:
    """Episodes from (key, class name) pairs; no clip stands twice in an episode.

    Raises ValueError where there are too few classes that have the clips an episode needs.
    """
    by_class: dict[str, list[str]] = defaultdict(list)
    for key, name in labelled:
        by_class[name].append(key)
    each = config.k_shot + -(-config.queries // config.n_way)
    able = sorted(name for name, keys in by_class.items() if len(keys) >= each)
    if len(able) < config.n_way:
        told = ", ".join(f"{name} {len(by_class[name])}" for name in sorted(by_class)[:20])
        raise ValueError(
            f"{config.n_way}-way {config.k_shot}-shot episodes with {config.queries} queries need {config.n_way} "
            f"classes of at least {each} clips, there are {len(able)} (clips of each class: {told})"
        )
    return tuple(_draw(by_class, able, each, config, number) for number in range(config.num))


def _draw(
    by_class: dict[str, list[str]], able: Sequence[str], each: int, config: EpisodeConfig, number: int
) -> Episode:
    rng = random.Random(f"{config.seed} {number}")
    classes = rng.sample(able, config.n_way)
    drawn = [rng.sample(by_class[name], each) for name in classes]
    asked = rng.sample(range(config.n_way), config.n_way)
    queries = [(asked[i % config.n_way], config.k_shot + i // config.n_way) for i in range(config.queries)]
    return Episode(
        tuple(classes),
        tuple(tuple(keys[: config.k_shot]) for keys in drawn),
        tuple((drawn[place][shot], place) for place, shot in queries),
    )


def labelled_tokens(tokens: TokenDataset, labels: str | Path | None = None) -> list[tuple[str, str]]:
    """(key, class name) of the clips of token shards, or with other classes, those that the file `labels` names."""
    if labels is not None:
        return other_labels(labels, tokens.keys)
    return named(tokens.keys, tokens.labels, tokens.class_names, str(tokens.folder))


def named(
    keys: Sequence[str], labels: Sequence[int] | None, class_names: Sequence[str] | None, where: str
) -> list[tuple[str, str]]:
    """(key, class name) pairs; ValueError for clips without labels, without names of classes or with one key."""
    if labels is None or class_names is None:
        missing = "labels" if labels is None else "names of its classes"
        raise ValueError(f"{where} has no {missing}: give a list that has them (and --classes FILE), or --labels FILE")
    if len(set(keys)) < len(keys):
        raise ValueError(f"{where} has several clips of one name: episodes need clips that can be told apart")
    return [(key, class_names[label]) for key, label in zip(keys, labels, strict=True)]


def other_labels(path: str | Path, keys: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs from lines `key TAB class name`; ValueError for malformed lines and clips that are not among `keys`."""
    pairs = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        fields = [field.strip() for field in line.split("\t")]
        if len(fields) != 2 or not all(fields):
            raise ValueError(f"{path}, line {number}: expected 'key TAB class name', got {line!r}")
        pairs.append((fields[0], fields[1]))
    repeated = [key for key, times in Counter(key for key, _ in pairs).items() if times > 1]
    if repeated:
        raise ValueError(f"{path}: {len(repeated)} clips have several labels{some(repeated)}")
    _check_known([key for key, _ in pairs], keys, str(path))
    return pairs


def check_episodes(episodes: Sequence[Episode], keys: Sequence[str], where: str) -> None:
    """ValueError unless all clips of the episodes are among `keys`."""
    _check_known([key for episode in episodes for key in episode.keys], keys, where)


def _check_known(named: Sequence[str], keys: Sequence[str], where: str) -> None:
    known = set(keys)
    unknown = sorted({key for key in named if key not in known})
    if unknown:
        raise ValueError(f"{where}: {len(unknown)} clips are not among the {len(known)} that are told{some(unknown)}")


def to_json(episodes: Sequence[Episode], config: EpisodeConfig) -> dict[str, Any]:
    """The contents of a file of episodes."""
    return json.loads(json.dumps({
        "format": FORMAT, "settings": asdict(config), "episodes": [asdict(episode) for episode in episodes],
    }))  # fmt: skip


def episodes_hash(episodes: Sequence[Episode]) -> str:
    """SHA-256 of what is asked: equal for equal tasks, whatever file they came from."""
    return hashlib.sha256(json.dumps([asdict(episode) for episode in episodes]).encode()).hexdigest()


def write(path: str | Path, episodes: Sequence[Episode], config: EpisodeConfig) -> None:
    """Write a file of episodes. ValueError where there is one with others: it belongs to the answers beside it."""
    path = Path(path)
    if path.is_file():
        if read(path)[0] != tuple(episodes):
            raise ValueError(f"{path} holds other episodes: choose another folder, or use them with --use {path}")
        return
    with write_aside(path) as aside:
        aside.write_text(json.dumps(to_json(episodes, config), ensure_ascii=False) + "\n", encoding="utf-8")


def read(path: str | Path) -> tuple[tuple[Episode, ...], EpisodeConfig]:
    """Episodes and how they were drawn. FileNotFoundError, or ValueError for a file that cannot be understood."""
    try:
        about = json.loads(Path(path).read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            raise ValueError(f"format {about['format']}, this version reads {FORMAT}")
        episodes = tuple(
            Episode(
                tuple(one["classes"]), tuple(map(tuple, one["support"])),
                tuple((key, place) for key, place in one["queries"]),
            )
            for one in about["episodes"]
        )  # fmt: skip
        return episodes, EpisodeConfig(**about["settings"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no file of episodes: {error}") from error


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """Options of what to draw; those that are not given stay None."""
    add, default = parser.add_argument, EpisodeConfig()
    add("--n-way", type=int, metavar="N", help=f"classes of an episode (default: {default.n_way})")
    add("--k-shot", type=int, metavar="K", help=f"examples of each (default: {default.k_shot})")
    add("--queries", type=int, metavar="Q", help=f"clips to name in an episode (default: {default.queries})")
    add("--num", type=int, metavar="E", help=f"episodes (default: {default.num})")
    add("--seed", type=int, help=f"of the drawing (default: {default.seed})")
    add("--labels", metavar="FILE", help="other classes: lines 'key TAB class name' for some or all of the clips")


def given_sizes(args: argparse.Namespace) -> dict[str, int]:
    names = ("n_way", "k_shot", "queries", "num", "seed")
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--tokens", metavar="SHARDS", help="folder of token shards with labels")
    source.add_argument("--data", metavar="LIST_OR_FOLDER", help="list file, CSV or folder of videos with labels")
    parser.add_argument("--classes", metavar="FILE", help="with a list: class names, one a line")
    parser.add_argument("--out", required=True, metavar="FILE", help="the episodes, as JSON")
    add_sizes(parser)


def main(args: argparse.Namespace) -> None:
    """Draw episodes and write them; ValueError and FileNotFoundError name what is wrong."""
    config = EpisodeConfig(**given_sizes(args))
    if args.tokens:
        labelled = labelled_tokens(TokenDataset(args.tokens), args.labels)
    else:
        clips = load_clips(args.data, classes=args.classes)
        if args.labels is not None:
            labelled = other_labels(args.labels, clips.keys)
        else:
            labelled = named(clips.keys, clips.labels, clips.class_names, str(args.data))
    episodes = draw(labelled, config)
    write(args.out, episodes, config)
    print(f"{args.out}: {len(episodes)} episodes, {config.n_way}-way {config.k_shot}-shot")
