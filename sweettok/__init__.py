"""SweetTok: video clips as short strings of words, and back (ICCV 2025, arXiv 2412.10443).

Importing this package is light: the public names are loaded when first used.
"""

from importlib import import_module

__version__ = "0.1.0"

_PUBLIC = {
    "SweetTok": "sweettok.models.tokenizer",
    "Generator": "sweettok.models.generator",
    "ProxyTokenizer": "sweettok.models.proxy",
    "TokenLayout": "sweettok.layout",
    "load_config": "sweettok.config",
    "read_clip": "sweettok.data.reader",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'sweettok' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__():
    return sorted(__all__)
