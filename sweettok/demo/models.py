"""What the page computes: reconstruction with its numbers, swaps of appearance and motion, generated clips.

Letters: B clips, T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sweettok.eval.metrics import psnr
from sweettok.eval.tokenizers import round_trip
from sweettok.generator.config import SamplingConfig
from sweettok.generator.model import Generator
from sweettok.inference.sample import check_models, class_name
from sweettok.pixels import to_uint8
from sweettok.tokenizer.model import SweetTok
from sweettok.tokenizer.output import TokenOutput


@dataclass(frozen=True)
class Models:
    """A tokenizer of clips, and a generator that was trained on its ids, if there is one."""

    tokenizer: SweetTok
    generator: Generator | None = None

    @property
    def class_names(self) -> list[str]:
        """Names of the generator's classes; empty if it has none."""
        generator = self.generator
        if generator is None:
            return []
        return [class_name(generator.class_names, label) for label in range(generator.config.num_classes or 0)]

    @property
    def guidance(self) -> bool:
        """Whether the generator can be guided, which needs a null class."""
        return self.generator is not None and self.generator.sequence.null_class


@dataclass(frozen=True)
class Analysis:
    """A clip and what its ids keep of it."""

    original: Tensor  # uint8 (3, T, H, W)
    reconstruction: Tensor  # uint8 (3, T, H, W)
    output: TokenOutput  # of this one clip
    psnr: float  # dB, of all frames together
    bits: float  # of the ids, all words of a list being equally likely

    @property
    def bits_per_pixel(self) -> float:
        return self.bits / self.original[0].numel()


def load(checkpoint: str | Path, generator: str | Path | None = None, device: torch.device | str = "cpu") -> Models:
    """Load the models of folders or hub repositories.

    Raises FileNotFoundError or ValueError for other models, and for a generator of another tokenizer.
    """
    tokenizer = SweetTok.from_pretrained(checkpoint)
    tokenizer.require_pixel_decoder()
    if tokenizer.temporal_quantizer is None:
        raise ValueError(f"{checkpoint} is a tokenizer of images: give one of stage 1 or stage 2")
    writer = None
    if generator is not None:
        writer = Generator.from_pretrained(generator)
        check_models(generator, writer, checkpoint, tokenizer, SamplingConfig())
        if writer.sequence.given_clip:
            raise ValueError(f"{generator} continues given frames: give a generator of whole clips")
        writer = writer.to(device)
    return Models(tokenizer.to(device), writer)


def analyse(tokenizer: SweetTok, clip: Tensor) -> Analysis:
    """Encode and decode a clip, uint8 (3, T, H, W)."""
    trip = round_trip(tokenizer, clip[None].to(tokenizer.device))
    decoded = to_uint8(trip.video).cpu()
    return Analysis(clip, decoded[0], trip.output, psnr(clip[None], decoded).item(), trip.bits)


def swap(tokenizer: SweetTok, first: Tensor, second: Tensor) -> Tensor:
    """Exchange the temporal ids of two clips, uint8 (3, T, H, W).

    Returns:
        uint8 (2, 3, T, H, W): the first clip's spatial ids with the second's temporal ids, and the other way round.
    """
    ids = tokenizer.encode(torch.stack([first, second])).ids
    spatial = tokenizer.layout.spatial.length  # spatial ids come first
    mixed = torch.cat((ids[:, :spatial], ids.flip(0)[:, spatial:]), dim=1)
    return to_uint8(tokenizer.decode(mixed)).cpu()


def sample(
    models: Models,
    label: str | int | None = None,
    count: int = 4,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
    **settings: float,
) -> Tensor:
    """Generated clips of a class, uint8 (count, 3, T, H, W); without a label if the generator has no classes.

    Args:
        label: name or number of the class. progress: called with 1 after every word.
        settings: fields of SamplingConfig, such as cfg_scale and top_p.

    Raises ValueError for an unknown class and for settings that the generator does not support.
    """
    generator = models.generator
    if generator is None:
        raise ValueError("there is no generator: start the page with --generator")
    names = models.class_names
    if isinstance(label, str) and label not in names:
        raise ValueError(f"no class {label!r}; there are {', '.join(names) or 'none'}")
    number = names.index(label) if isinstance(label, str) else label
    condition = {"num_samples": count} if number is None else {"labels": [number] * count}
    ids = generator.sample(**condition, seed=seed, progress=progress, **settings)
    return to_uint8(models.tokenizer.decode(ids)).cpu()
