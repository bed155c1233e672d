"""Prompts for a language model. Example:

Name each clip from the words that describe it. Answer with exactly one of: fall, rise.

Input: <adjectives: small, red; nouns: square; adverbs: slowly; verbs: drops, sinks>
Output: fall

Input: <...>
Output: rise

Input: <...>
Output:
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from sweettok.data.episodes import Episode
from sweettok.tokenizer.layout import KINDS

ORDERS = ("interleaved", "grouped", "shuffled")
Words = dict[str, list[str]]  # kind -> words


@dataclass(frozen=True)
class PromptConfig:
    """Contents of a prompt.

    Args:
        words: number of words of each kind per clip, the most frequent ones.
        kinds: kinds of words.
        instruction: start with a line that lists the classes.
        repeats: number of additional repetitions of the examples.
        order: order of the examples: "interleaved" (one of each class in turn), "grouped" by class, or "shuffled" by
            `seed` and the number of the episode.
    """

    words: int = 5
    kinds: tuple[str, ...] = KINDS
    instruction: bool = True
    repeats: int = 0
    order: str = "interleaved"
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.kinds or len(set(self.kinds)) < len(self.kinds) or not set(self.kinds) <= set(KINDS):
            raise ValueError(f"kinds must be some of {', '.join(KINDS)}, each once; got {self.kinds}")
        if self.words < 1 or self.repeats < 0:
            raise ValueError(f"words must be at least 1 and repeats at least 0; got {self.words} and {self.repeats}")
        if self.order not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(ORDERS)}; got {self.order!r}")


def examples(episode: Episode, config: PromptConfig, number: int) -> list[tuple[str, str]]:
    """(key, class name) of each example in the order of the prompt; `number`: number of the episode."""
    grouped = [(key, name) for keys, name in zip(episode.support, episode.classes, strict=True) for key in keys]
    if config.order == "interleaved":
        shots = len(episode.support[0])
        return [grouped[place * shots + shot] for shot in range(shots) for place in range(len(episode.classes))]
    if config.order == "shuffled":
        random.Random(f"{config.seed} {number} order").shuffle(grouped)
    return grouped


def build(episode: Episode, query: str, words_of: Callable[[str], Words], config: PromptConfig, number: int = 0) -> str:
    """The prompt for the class of the clip `query`."""

    def describe(key: str) -> str:
        return "; ".join(f"{kind}s: {', '.join(words)}" for kind, words in words_of(key).items() if words)

    shown = [f"Input: <{describe(key)}>\nOutput: {name}" for key, name in examples(episode, config, number)]
    parts = shown * (config.repeats + 1)
    if config.instruction:
        names = ", ".join(sorted(episode.classes))
        parts.insert(0, f"Name each clip from the words that describe it. Answer with exactly one of: {names}.")
    return "\n\n".join([*parts, f"Input: <{describe(query)}>\nOutput:"])
