"""Published files of SweetTok: their names, their entries without effect, loading and writing them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sweettok import convert
from sweettok.priors.graph import Prior
from sweettok.priors.io import load_prior
from sweettok.proxy.model import ProxyTokenizer
from sweettok.proxy.release import DROPPED, LAYER, PATCHES, neutral_entries, pixel_decoder, zero_linears
from sweettok.tokenizer.base import SweetTokBase
from sweettok.tokenizer.config import TokenizerConfig

if TYPE_CHECKING:
    from typing_extensions import Self

# Stacks of which only the un-normed outputs are used: their final norms have no effect.
_UNNORMED = (
    r"^(encoder\.enc_(?:spatial|temporal)_transformer)\.",
    r"^(decoder\.dec_(?:spatial|temporal)_latent_transformer)\.",
    r"^(decoder\.dec_temporal_transformer\.\d+)\.",
)
_ONE_TOKEN = r"_(latent_temporal|temporal_latent)_transformer\.layers\.\d+\.1\."  # self-attention on one token


def _neutral(released: dict[str, Tensor]) -> dict[str, Tensor]:
    found = neutral_entries(released, r"^pixel_decoder\.dec_temporal_transformer")
    scale = next(torch.ones_like(value) for name, value in released.items() if name.endswith(".q_scale"))
    for name, value in released.items():
        stack = next((match[1] for match in (re.match(pattern, name) for pattern in _UNNORMED) if match), None)
        if stack is not None and name.endswith(".3.4.weight"):
            found[f"{stack}.norm_out.gamma"], found[f"{stack}.norm_out.beta"] = _unit_norm(len(value))
        if re.search(rf"{_ONE_TOKEN}to_kv\.weight$", name):
            attention, inner, dim = name.removesuffix(".to_kv.weight"), len(value) // 2, value.shape[1]
            found[f"{attention}.norm.gamma"], found[f"{attention}.norm.beta"] = _unit_norm(dim)
            found[f"{attention}.to_q.weight"] = torch.eye(inner, dim)
            found |= {f"{attention}.q_scale": scale.clone(), f"{attention}.k_scale": scale.clone()}
    # Two linear layers that the published temporal codebook never applies.
    first, last = (released.get(f"quantize_temporal.gcn.{name}.lin.weight") for name in ("conv1", "conv2"))
    if first is not None and last is not None:
        shapes = {"0": tuple(first.shape), "2": tuple(last.shape)}
        found |= zero_linears("quantize_temporal.code_book_mapping", shapes)
    return found


def _unit_norm(dim: int) -> tuple[Tensor, Tensor]:
    return torch.ones(dim), torch.zeros(dim)


TOKENIZER = convert.Table(
    prefixes=(
        (r"encoder\.spatial_queries$", "latent_spatial_tokens"),
        (r"encoder\.temporal_queries$", "latent_temporal_tokens"),
        (r"encoder\.spatial_positions$", "encoder.spatial_latent_tokens_positional_embedding"),
        (r"encoder\.temporal_positions$", "encoder.temporal_latent_tokens_positional_embedding"),
        *((rf"encoder\.{pattern}", name) for pattern, name in PATCHES),
        (r"encoder\.spatial\.", "encoder.enc_spatial_transformer."),
        (r"encoder\.spatial_query\.", "encoder.enc_latent_spatial_transformer."),
        (r"encoder\.temporal\.", "encoder.enc_temporal_transformer."),
        (r"encoder\.temporal_query\.", "encoder.enc_latent_temporal_transformer."),
        (r"encoder\.spatial_out\.0\.", "encoder.ln_post_spatial."),
        (r"encoder\.spatial_out\.1\.", "encoder.conv_out."),
        (r"encoder\.spatial_out\.2\.", "pre_vq_conv_.1."),
        (r"encoder\.temporal_out\.0\.", "encoder.ln_post_temporal."),
        (r"encoder\.temporal_out\.1\.", "encoder.conv_out_temporal."),
        (r"encoder\.temporal_out\.2\.", "pre_vq_conv_temporal.1."),
        (r"spatial_quantizer\.codebook\.", "quantize.gcn."),
        (r"temporal_quantizer\.codebook\.", "quantize_temporal.gcn."),
        (r"decoder\.spatial_in\.0\.", "post_vq_conv_.1."),
        (r"decoder\.spatial_in\.1\.", "decoder.decoder_embed."),
        (r"decoder\.temporal_in\.0\.", "post_vq_conv_temporal.1."),
        (r"decoder\.temporal_in\.1\.", "decoder.decoder_embed_temporal."),
        (r"decoder\.spatial_positions$", "decoder.spatial_latent_tokens_positional_embedding"),
        (r"decoder\.temporal_positions$", "decoder.temporal_latent_tokens_positional_embedding"),
        (r"decoder\.positions$", "decoder.positional_embedding"),
        (r"decoder\.mask_token$", "decoder.mask_token"),
        (r"decoder\.spatial_latent\.", "decoder.dec_spatial_latent_transformer."),
        (r"decoder\.temporal_latent\.", "decoder.dec_temporal_latent_transformer."),
        (r"decoder\.spatial\.", "decoder.dec_spatial_transformer."),
        (r"decoder\.motion\.(\d+)\.norm_out\.", r"decoder.dec_temporal_transformer.\1.norm_out."),
        (r"decoder\.motion\.(\d+)\.", r"decoder.dec_temporal_transformer.\1.layers.0."),
        (r"decoder\.head\.0\.", "decoder.ln_post."),
        (r"decoder\.head\.1\.", "decoder.ffn.0."),
        (r"decoder\.head\.3\.", "decoder.ffn.2."),
        *pixel_decoder("pixel_decoder", "pixel_"),
    ),
    parts=LAYER,
    dropped=(
        *DROPPED,
        r"\.code_book_mapping\.",
        *(rf"{pattern}norm_out\." for pattern in _UNNORMED),
        rf"{_ONE_TOKEN}(norm|to_q|q_scale|k_scale)",
    ),
    kept_here=(
        r"codebook\.(vectors|edges)$",
        # Of variants that `check_published` refuses.
        r"codebook\.(projection|table)",
        r"^encoder\.(positions$|query\.|down_)",
        r"^decoder\.(latent\.|temporal\.|up_)",
    ),
    halved=r"self_attn\.to_v\.weight$",
    shapes=(
        (r"(^encoder\.conv_out(_temporal)?|^decoder\.ffn\.\d)\.weight$", lambda value: value[..., None, None]),
        (r"^decoder\.mask_token$", lambda value: value[None, None]),
    ),
    neutral=_neutral,
)


def check_published(config: TokenizerConfig) -> None:
    """ValueError for a tokenizer that published weights cannot fill."""
    names = ("lookup", "compression", "codebook", "decoder_order", "patch_norm", "slice_positions", "cross_positions")
    for name in names:
        ours, published = getattr(config, name), getattr(TokenizerConfig, name)
        if ours != published:
            raise ValueError(
                f"published weights are of {name} {published}, and tokenizer.{name} is {ours}, which needs others: use "
                "folders written by save_pretrained or by training"
            )


class ReleaseMethods(SweetTokBase):
    """Published weights of SweetTok, under their published names."""

    @classmethod
    def from_release(
        cls,
        weights: str | Path | Mapping[str, Any],
        priors: str | Path | Prior,
        config: TokenizerConfig | None = None,
        proxy: str | Path | Mapping[str, Any] | ProxyTokenizer | None = None,
    ) -> Self:
        """Load published weights, strictly (see `sweettok.convert`); the model is in evaluation mode, on the CPU.

        Args:
            weights: a file, or a mapping of published names to arrays, of stage 2 or of stage 1, which has no pixel
                decoder.
            priors: folder with the word graphs (published pickles or the native format), or the prior itself.
            config: sizes, if they are not the release's; ValueError for another architecture than the release's.
            proxy: for stage-1 weights, the proxy they were trained on; without it `decode` is not available.
        """
        config = config or TokenizerConfig()
        check_published(config)
        released = convert.read_weights(weights)
        prior = priors if isinstance(priors, Prior) else load_prior(priors)
        has_pixels = any(name.startswith("pixel_") for name in released)
        if has_pixels and proxy is not None:
            raise ValueError("these weights hold a pixel decoder of their own: leave `proxy` out")
        path = "expected" if has_pixels else "none" if proxy is None else "argmax"
        make: Any = cls
        model = make(replace(config, pixel_path=path), prior)
        state = model.state_dict()
        if proxy is not None:
            if not isinstance(proxy, ProxyTokenizer):
                proxy = ProxyTokenizer.from_release(proxy, model.config.proxy)
            model.use_proxy(proxy)
            state = {name: value for name, value in state.items() if not name.startswith("pixel_decoder.")}
        model.load_state_dict({**model.state_dict(), **convert.import_weights(state, released, TOKENIZER)})
        return model.eval()

    def to_release(self) -> dict[str, Tensor]:
        """Published names -> tensors, complete for a strict load elsewhere; the inverse of `from_release`.

        Word vectors and graphs are not part of published weights. A stage-1 tokenizer leaves its pixel decoder out; a
        tokenizer of images gives the parts from which stage 1 starts. ValueError for another architecture.
        """
        check_published(self.config)
        released = convert.export_weights(self.state_dict(), TOKENIZER)
        if self.config.pixel_path == "argmax":
            released = {name: value for name, value in released.items() if not name.startswith("pixel_")}
        return released

    def use_proxy(self, proxy: ProxyTokenizer) -> None:
        """Copy the pixel decoder and the codes of a trained proxy; ValueError if it has other sizes."""
        ours = self.config.proxy
        free = ("num_frames", "height", "width", "preprocessing")  # the same for every clip
        theirs = replace(proxy.config, **{name: getattr(ours, name) for name in free if hasattr(ours, name)})
        if self.pixel_decoder is None or theirs != ours:
            room = "no pixel decoder (pixel_path none)" if self.pixel_decoder is None else f"room for {ours}"
            raise ValueError(f"this tokenizer has {room}, but the proxy is {proxy.config}")
        self.pixel_decoder.load_state_dict(proxy.decoder.state_dict())
