"""Fresh weights of SweetTok, and their fit to a proxy and to clips (`warm_start`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

from sweettok.layers.initialisation import init_linears
from sweettok.proxy.model import PixelDecoder
from sweettok.tokenizer.decoder import QueryDecoder
from sweettok.tokenizer.encoder import QueryEncoder
from sweettok.tokenizer.quantizer import LanguageQuantizer

if TYPE_CHECKING:
    from sweettok.tokenizer.base import SweetTokBase


def init_weights(model: SweetTokBase) -> None:
    """Linear layers as in `init_linears`; queries and positions normal with standard deviation dim^-0.5.

    The pixel decoder is left as it is: it comes from a trained proxy.
    """
    encoder, decoder, dim = model.encoder, model.decoder, model.config.block.dim
    for branch in (encoder, decoder):
        init_linears(branch, dim)
    for tokens in (
        encoder.spatial_queries,
        encoder.spatial_positions,
        encoder.temporal_queries,
        encoder.temporal_positions,
        decoder.spatial_positions,
        decoder.temporal_positions,
        decoder.positions,
        decoder.mask_token,
    ):
        if tokens is not None:
            nn.init.normal_(tokens, std=dim**-0.5)


def warm_start(
    encoder: QueryEncoder,
    quantizers: Mapping[str, LanguageQuantizer],
    decoder: QueryDecoder,
    pixel_decoder: PixelDecoder,
    video: Tensor,
) -> None:
    """Centre fresh latents and codes on float clips (B, 3, T, H, W), and start the head from the proxy's codes."""
    for branch, deviation in encoder.start_centred(video).items():
        quantizer = quantizers[branch]
        quantizer.codebook.start_spread(deviation, quantizer.list_sizes)
    decoder.start_head(pixel_decoder.codebook.embeddings)
