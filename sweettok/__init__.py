"""SweetTok: video clips as short strings of words, and back (ICCV 2025, arXiv 2412.10443).

The public names are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sweettok.data.reader import read_clip as read_clip
    from sweettok.generator.model import Generator as Generator
    from sweettok.proxy.model import ProxyTokenizer as ProxyTokenizer
    from sweettok.stages import load_config as load_config
    from sweettok.tokenizer.layout import TokenLayout as TokenLayout
    from sweettok.tokenizer.model import SweetTok as SweetTok
    from sweettok.tokenizer.output import LongTokens as LongTokens
    from sweettok.tokenizer.output import TokenOutput as TokenOutput
    from sweettok.vtok.adapter import StateAdapter as StateAdapter
    from sweettok.vtok.decoder import PixelFlow as PixelFlow
    from sweettok.vtok.language import VideoLanguageModel as VideoLanguageModel
    from sweettok.vtok.model import VTok as VTok
    from sweettok.vtok.output import VisualTokens as VisualTokens

__version__ = "0.1.0"

_PUBLIC = {
    "SweetTok": "sweettok.tokenizer.model",
    "Generator": "sweettok.generator.model",
    "ProxyTokenizer": "sweettok.proxy.model",
    "TokenLayout": "sweettok.tokenizer.layout",
    "TokenOutput": "sweettok.tokenizer.output",
    "LongTokens": "sweettok.tokenizer.output",
    "PixelFlow": "sweettok.vtok.decoder",
    "StateAdapter": "sweettok.vtok.adapter",
    "VTok": "sweettok.vtok.model",
    "VideoLanguageModel": "sweettok.vtok.language",
    "VisualTokens": "sweettok.vtok.output",
    "load_config": "sweettok.stages",
    "read_clip": "sweettok.data.reader",
}
__all__ = ["__version__", *_PUBLIC]


if not TYPE_CHECKING:  # with this function, type checkers would accept any name

    def __getattr__(name: str):
        if name not in _PUBLIC:
            raise AttributeError(f"module 'sweettok' has no attribute {name!r}")
        return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
