"""Protocols by name: those of published numbers, and `exact`, the recommended one.

What published evaluations leave open (seeds, TF32, which clips a training loader happens to give) is fixed here.
"""

from __future__ import annotations

from sweettok.eval.protocol import Protocol

# Nothing is lost that can be kept: float64, bytes by rounding, no size between the model's (or the files') own and the
# detector's, antialiasing, and the epsilon that the network was trained with.
_EXACT = Protocol(name="exact", short="error", batch_norm_eps=1e-3, detector_antialias=True)

# SweetTok and OmniTokenizer: all clips of the validation list, through the model's range and truncated.
_RFVD = Protocol(
    name="sweettok-rfvd-ucf101", split="UCF-101 test, split 1 (3,783 clips)", paired=True,
    frames=17, height=256, width=256, short="black", range="centred", quantize="floor", dtype="float32",
)  # fmt: skip

# SweetTok and OmniTokenizer: 2,048 clips a side, the generated ones from lossy files. Decoded from ids they have no
# codec, which the report then says.
_GFVD = Protocol(
    name="sweettok-gfvd-ucf101", split="UCF-101 train, split 1", num_real=2048, num_fake=2048, selection="seeded",
    paired=False, frames=17, height=128, width=128, quantize="floor", codec="mp4", detector_resize="crop",
    dtype="float32",
)  # fmt: skip

# The detector of StyleGAN-V and LARP is a TorchScript file that resizes by itself; its epsilon is not known.
_SCRIPTED = Protocol(
    name="", detector="i3d-torchscript", batch_norm_eps=None, detector_resize="inside",
    frames=16, ddof=0,
)  # fmt: skip

PRESETS = {
    protocol.name: protocol
    for protocol in (
        _EXACT,
        _RFVD,
        _GFVD,
        _RFVD.filled(name="omnitokenizer-rfvd-ucf101", clamp="fake"),
        _RFVD.filled(name="omnitokenizer-rfvd-k600", split="Kinetics-600 validation", clamp="fake"),
        _GFVD.filled(name="omnitokenizer-gfvd-ucf101"),
        _GFVD.filled(
            name="k600-prediction", split="Kinetics-600 validation", height=64, width=64, given_frames=5,
            count_given=True,
        ),
        Protocol(
            name="tats-128", split="UCF-101 train", num_real=2048, num_fake=2048, selection="seeded", paired=False,
            frames=16, position="random", height=128, width=128, range="centred", quantize="floor", clamp="fake",
            dtype="float32",
        ),
        _SCRIPTED.filled(
            name="stylegan-v", num_real=2048, num_fake=2048, selection="seeded", paired=False, position="random",
            root="sqrtm",
        ),
        _SCRIPTED.filled(
            name="larp-128", split="UCF-101 train", paired=True, height=128, width=128, resize="crop",
            resize_filter="antialias", quantize="none",
        ),
    )
}  # fmt: skip
DEFAULT = "exact"


def find_protocol(name: str, settings: list[str] | tuple[str, ...] = ()) -> Protocol:
    """The preset of a name, with `field=value` settings applied. ValueError for an unknown name or setting."""
    if name not in PRESETS:
        raise ValueError(f"no protocol {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name].changed(settings)
