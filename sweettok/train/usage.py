"""Codebook usage in training: how many words of each list are chosen in a window of steps."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sweettok.distributed import add_up, rank
from sweettok.segments import Segment, SegmentLayout

logger = logging.getLogger(__name__)

LEAST = 0.05  # warn if a smaller share of a list's words is chosen in a window
FALLEN = 0.5  # warn if the perplexity is below this share of the best one, and of that at the last warning
RECOVERED = 0.75  # forget the last warning if the perplexity reaches this share of the best one
START = 0.02  # share of a run's steps before which perplexities are no reference, because weights are nearly random
WARNING = (
    "the %s list collapses: perplexity %.1f in the last window, at best %.1f since the run's start; %.1f%% of its "
    "words were chosen. Try a lower optimizer.lr, spatial pretraining (run_train_spatial.sh) as init, "
    "or tokenizer.graph_dropout"
)


class UsageWindow(nn.Module):
    """Counts how often each word is chosen. The counts stay on the device and are not part of a state dict."""

    def __init__(self, layout: SegmentLayout):
        super().__init__()
        self.segments = layout.segments
        self.register_buffer("counts", torch.zeros(layout.vocab_size, dtype=torch.int64), persistent=False)

    @torch.no_grad()
    def forward(self, *ids: Tensor) -> None:
        """Count ids, given as one tensor for each segment of the layout, with ids local to its word list."""
        for segment, chosen in zip(self.segments, ids, strict=True):
            flat = chosen.flatten()
            # Unlike torch.bincount, this does not wait for the device.
            self._counts(segment).index_add_(0, flat, torch.ones_like(flat))

    def _counts(self, segment: Segment) -> Tensor:
        return self.counts[segment.vocab_start :][: segment.vocab_size]

    @torch.no_grad()
    def read(self) -> dict[str, Tensor]:
        """Scalars of each word list since the last call, over all processes; resets the counts.

        Returns:
            usage/<list>: share of its words that were chosen; perplexity/<list>: exponential of the entropy of the
            choices; dead/<list>: number of its words that were not chosen.
        """
        add_up(self.counts)
        report = {}
        for segment in self.segments:
            counts = self._counts(segment)
            share = counts / counts.sum().clamp_min(1)
            report[f"usage/{segment.name}"] = (counts > 0).float().mean()
            report[f"perplexity/{segment.name}"] = torch.special.entr(share).sum().exp()
            report[f"dead/{segment.name}"] = (counts == 0).sum()
        self.counts.zero_()
        return report


class UsageWatch:
    """Warns if a word list collapses, and again each time its perplexity has halved.

    A list collapses if its perplexity falls below FALLEN of the best of all windows after the run's start (few words
    may be chosen often and many rarely), or if fewer than LEAST of its words are chosen. In windows with fewer ids than
    words, LEAST refers to the number of ids.
    """

    def __init__(self, layout: SegmentLayout, clips: int):
        """clips: number of clips in a window."""
        self.least = {s.name: LEAST * min(1, clips * s.length / s.vocab_size) for s in layout.segments}
        self.best: dict[str, float] = {}  # perplexities
        self.warned: dict[str, float] = {}  # perplexities at the last warning, until the list has recovered

    def see(self, means: Mapping[str, float], progress: float = 1.0) -> None:
        """Check logged scalars, if those of `UsageWindow.read` are among them. progress: share of finished steps."""
        for name, least in self.least.items():
            if f"usage/{name}" not in means:
                continue
            usage, perplexity = means[f"usage/{name}"], means[f"perplexity/{name}"]
            if progress > START:
                self.best[name] = max(perplexity, self.best.get(name, 0.0))
            best, unused = self.best.get(name, 0.0), usage < least
            if perplexity < FALLEN * self.warned.get(name, best) or (unused and name not in self.warned):
                self.warned[name] = perplexity
                if rank() == 0:
                    logger.warning(WARNING, name, perplexity, best, 100 * usage)
            elif perplexity >= RECOVERED * best and not unused:
                self.warned.pop(name, None)
