"""Encode and decode of a tokenizer as packages of torch.export, which load without this library.

Letters: B batch, T frames, H W pixels, L ids per clip.
"""

from __future__ import annotations

import copy
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sweettok.store import write_aside

if TYPE_CHECKING:
    from sweettok.tokenizer.model import SweetTok

LARGEST_BATCH = 65_535
NOTE = "sweettok.json"  # in each package


class Codes(nn.Module):
    """The finished codes of a codebook."""

    def __init__(self, codes: Tensor):
        super().__init__()
        self.register_buffer("codes", codes.clone())

    def forward(self) -> Tensor:
        return self.codes


class Encode(nn.Module):
    """Clips (B, 3, T, H, W) float32 in [-0.5, 0.5] -> global ids (B, L) int64."""

    def __init__(self, tok: SweetTok):
        super().__init__()
        self.tok = parts(tok, "encoder")

    def forward(self, video: Tensor) -> Tensor:
        return self.tok.ids(*self.tok.quantize(video))


class Decode(nn.Module):
    """Global ids (B, L) int64, which are not checked -> clips (B, 3, T, H, W) float32 in [-0.5, 0.5]."""

    def __init__(self, tok: SweetTok):
        super().__init__()
        self.tok, self.slices = parts(tok, "decoder", "pixel_decoder"), tok.num_slices(tok.clip_frames)

    def forward(self, ids: Tensor) -> Tensor:
        return self.tok.to_pixels(self.tok.decoder(*self.tok.codes(ids), self.slices)).clamp(-0.5, 0.5)


def parts(tok: SweetTok, *names: str) -> SweetTok:
    """A tokenizer with these modules and the quantizers, whose codebooks are their finished codes."""

    def frozen(quantizer: Any) -> Any:
        made = copy.copy(quantizer)
        vars(made).pop("codebook", None)  # a shared codebook is not a submodule
        made._modules = {"codebook": Codes(quantizer.codebook())}
        return made

    quantizers = {f"{name}_quantizer": frozen(quantizer) for name, quantizer in tok.quantizers.items()}
    made = copy.copy(tok)
    made._modules = {"temporal_quantizer": None, **quantizers, **{name: getattr(tok, name) for name in names}}
    return made


@torch.no_grad()
def write_packages(tok: SweetTok, folder: str | Path) -> list[Path]:
    """See `SweetTok.export`. Returns the files."""
    tok.check_precision()
    tok.require_pixel_decoder()
    if tok.training:
        raise ValueError("the tokenizer is in training mode, whose dropout would be part of the packages: call .eval()")
    config = tok.config
    shape = (2, 3, tok.clip_frames, config.height, config.width)
    clip = torch.linspace(-0.5, 0.5, 2 * 3 * shape[2] * shape[3] * shape[4], device=tok.device).view(shape)
    layout = tok.clip_layout(tok.clip_frames)
    ids = torch.tensor([s.vocab_start for s in layout.segments for _ in range(s.length)], device=tok.device)
    facts = {"ids_hash": tok.ids_hash(), "clip": ["B", *shape[1:]], "layout": asdict(layout)}
    files = []
    for name, module, example in (("encode", Encode(tok), clip), ("decode", Decode(tok), ids.expand(2, -1))):
        batch = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
        program = torch.export.export(module.eval(), (example,), dynamic_shapes=({0: batch},))
        files.append(Path(folder, f"{name}.pt2"))
        with write_aside(files[-1]) as aside:
            torch.export.save(program, aside, extra_files={NOTE: json.dumps(facts)})
    return files
