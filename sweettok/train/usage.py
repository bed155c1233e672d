"""Health of the word lists while they are trained: how many of their words are chosen in a window of steps."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sweettok.distributed import add_up, rank
from sweettok.segments import Segment, SegmentLayout

logger = logging.getLogger(__name__)

LEAST = 0.05  # usage of a list below which a line warns
FALLEN = 0.5  # of a list's best perplexity, and of the one last warned of: below that a line warns
RECOVERED = 0.75  # of a list's best perplexity: from there on a new fall is told from its beginning


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
        """Of each word list, over all processes and since the last reading, as scalars; then starts afresh.

        usage/<list>: share of its words that were chosen. perplexity/<list>: the number of words, were all chosen
        equally, that would say as much. dead/<list>: words that were never chosen.
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

    That is when its perplexity falls below FALLEN of its best: a list may be left with two words that count, and many
    that are chosen now and then. Or when its usage falls below LEAST of the list, or of the ids of a window where those
    are fewer than its words.
    """

    def __init__(self, layout: SegmentLayout, clips: int):
        """clips: in a window."""
        self.least = {s.name: LEAST * min(1, clips * s.length / s.vocab_size) for s in layout.segments}
        self.best: dict[str, float] = {}  # perplexities
        self.told: dict[str, float] = {}  # those last warned of, until they have recovered

    def see(self, means: Mapping[str, float]) -> None:
        """Look at what was logged; the scalars of `UsageWindow.read` may be among it."""
        for name, least in self.least.items():
            if f"usage/{name}" not in means:
                continue
            usage, perplexity = means[f"usage/{name}"], means[f"perplexity/{name}"]
            best = self.best[name] = max(perplexity, self.best.get(name, 0.0))
            unused = usage < least
            if perplexity < FALLEN * self.told.get(name, best) or (unused and name not in self.told):
                self.told[name] = perplexity
                if rank() == 0:
                    logger.warning(
                        "the %s list collapses: perplexity %.1f in the last window, %.1f in its best; %.1f%% of its "
                        "words were chosen", name, perplexity, best, 100 * usage,
                    )  # fmt: skip
            elif perplexity >= RECOVERED * best and not unused:
                self.told.pop(name, None)
