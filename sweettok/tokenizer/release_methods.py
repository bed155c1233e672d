"""Loading and writing the published files of SweetTok."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sweettok import convert
from sweettok.priors.graph import Prior
from sweettok.priors.io import load_prior
from sweettok.proxy.model import ProxyTokenizer
from sweettok.tokenizer.base import SweetTokBase
from sweettok.tokenizer.config import TokenizerConfig
from sweettok.tokenizer.release import TOKENIZER, check_published

if TYPE_CHECKING:
    from typing_extensions import Self


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
            config: sizes, if they are not the release's; ValueError for another lookup than the release's.
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
        tokenizer of images gives the parts from which stage 1 starts. ValueError for another lookup than the release's.
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
