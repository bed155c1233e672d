"""Usage of the word lists in training: how many of their words are chosen in a window of steps."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sweettok.distributed import add_up, rank
from sweettok.segments import Segment, SegmentLayout

logger = logging.getLogger(__name__)

LEAST = 0.05  # share of a list's words: fewer that are chosen in a window cause a warning
FALLEN = 0.5  # share of a list's best perplexity, and of that of the last warning: less causes a warning
RECOVERED = 0.75  # share of a list's best perplexity: from there on a new fall is warned of again
START = 0.02  # share of a run's steps; the choices of random weights, before it, are no measure for later ones
WARNING = (
    "the %s list collapses: perplexity %.1f in the last window, at best %.1f since the run's start; %.1f%% of its "
    "words were chosen. What helps: a lower optimizer.lr, spatial pretraining (run_train_spatial.sh) as init, "
    "or tokenizer.graph_dropout"
)


class UsageWindow(nn.Module):
    """Counts how often each word is chosen. The counts stay on the device and are no part of any weights."""

    def __init__(self, layout: SegmentLayout):
        super().__init__()
        self.segments = layout.segments
        self.register_buffer("counts", torch.zeros(layout.vocab_size, dtype=torch.int64), persistent=False)

    @torch.no_grad()
    def forward(self, *ids: Tensor) -> None:
        """Add ids local to their word list, in a tensor for each segment of the layout."""
        for segment, chosen in zip(self.segments, ids, strict=True):
            flat = chosen.flatten()
            # Unlike bincount, this does not wait for the device.
            self._counts(segment).index_add_(0, flat, torch.ones_like(flat))

    def _counts(self, segment: Segment) -> Tensor:
        return self.counts[segment.vocab_start :][: segment.vocab_size]

    @torch.no_grad()
    def read(self) -> dict[str, Tensor]:
        """Scalars of each word list since the last reading, over all processes; counting then starts anew.

        Returns:
            usage/<list>: share of its words that were chosen. perplexity/<list>: exponential of the entropy of the
            choices. dead/<list>: number of its words that were never chosen.
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
    """Warns when a word list collapses, and again whenever its perplexity has halved since.

    A list collapses when its perplexity falls below FALLEN of the best of all windows after the run's start: it may be
    left with two words that are chosen often and many that are chosen now and then. Or when fewer than LEAST of its
    words are chosen, or than LEAST of the ids in a window where those are fewer than the words.
    """

    def __init__(self, layout: SegmentLayout, clips: int):
        """clips: in a window."""
        self.least = {s.name: LEAST * min(1, clips * s.length / s.vocab_size) for s in layout.segments}
        self.best: dict[str, float] = {}  # perplexities
        self.warned: dict[str, float] = {}  # perplexities at the last warning, until the list has recovered

    def see(self, means: Mapping[str, float], progress: float = 1.0) -> None:
        """Check what was logged, which may include the scalars of `UsageWindow.read`.

        Args:
            progress: share of the run's steps that are done.
        """
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
