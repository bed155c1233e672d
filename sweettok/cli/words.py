"""`sweettok words`: show and evaluate the words of video tokens."""

from __future__ import annotations

from sweettok.cli.main import Command
from sweettok.words import episodes, fewshot, overlay, show

COMMANDS = {
    "show": Command("print the most frequent words of clips", show.add_arguments, show.main),
    "overlay": Command("draw the words of clips over their frames", overlay.add_arguments, overlay.main),
    "episodes": Command("draw few-shot tasks from labelled clips", episodes.add_arguments, episodes.main),
    "fewshot": Command("classify clips by their words, with and without a language model", fewshot.add_arguments,
                       fewshot.main),
}  # fmt: skip
