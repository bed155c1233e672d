"""Which ids may follow in a generator's sequence, for engines other than `Generator.sample`."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from sweettok.config import build
from sweettok.generator.sequence import SequenceLayout

SEQUENCE = "sequence.json"


class LegalIds:
    """Logits processor that leaves only the ids which are allowed at the next position: words, or a forced separator.

    An object is called as a `LogitsProcessor` of transformers; other engines call `mask`.

    Args:
        sequence: of a generator, `generator.sequence`.
    """

    def __init__(self, sequence: SequenceLayout):
        self.sequence = sequence
        self.ranges = [(run.first, run.stop) for run in sequence.runs for _ in range(run.length)]

    @classmethod
    def from_folder(cls, folder: str | Path) -> LegalIds:
        """Of a folder that `Generator.to_transformers` wrote. Raises FileNotFoundError if it is none."""
        path = Path(folder, SEQUENCE)
        if not path.is_file():
            raise FileNotFoundError(f"{folder} holds no {SEQUENCE}: give a folder of sweettok export transformers")
        saved = json.loads(path.read_text(encoding="utf-8"))
        fields = ("layout", "num_classes", "null_class", "given_clip")
        return cls(build(SequenceLayout, {name: saved[name] for name in fields}))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Ids so far (B, prompt + n) and scores (B, V) -> scores with -inf for what may not follow."""
        return self.mask(scores, input_ids.shape[1] - self.sequence.prompt_length)

    def mask(self, scores: Tensor, place: int) -> Tensor:
        """Scores (..., V) of the target's zero-based `place`, the number of ids after the prompt, as in `__call__`."""
        if not 0 <= place < len(self.ranges):
            last = len(self.ranges) - 1
            raise ValueError(f"a clip's target has places 0..{last}; got place {place}: is the prompt complete?")
        first, stop = self.ranges[place]
        legal = torch.full_like(scores, -torch.inf)
        legal[..., first:stop] = scores[..., first:stop]
        return legal

    def ids(self, sequences: Tensor) -> Tensor:
        """Generated sequences (B, prompt + target, or without its last id) -> global ids (B, L) for `decode`."""
        return self.sequence.ids(sequences[:, self.sequence.prompt_length :])
