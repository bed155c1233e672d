"""A folder like the quickstart's output, with untrained models."""

import re
from pathlib import Path

import tiny

from sweettok import Generator
from sweettok.data.synthetic import synthetic_clip
from sweettok.data.writer import write_video
from sweettok.generator.config import GeneratorConfig

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "quickstart.sh"
CLASSES = ("rise", "fall")


def write_outputs(folder: Path) -> None:
    """`folder`/outputs/tiny: held-out clips, a tokenizer, its proxy, and a generator of two classes."""
    out = folder / "outputs" / "tiny"
    first = int(re.search(r"--num-train (\d+)", SCRIPT.read_text())[1])
    for number in range(8):
        clip = synthetic_clip(first + number, 24, 32)
        write_video(out / f"clips/videos/{clip.class_name}/val_{number:05d}.mp4", clip.video, 12)
    proxy, tokenizer = tiny.proxy(), tiny.tokenizer()
    tokenizer.use_proxy(proxy)
    proxy.save_pretrained(out / "proxy/final")
    tokenizer.save_pretrained(out / "stage2/final")
    config = GeneratorConfig(dim=16, num_layers=1, num_heads=2, layout=tokenizer.layout, num_classes=len(CLASSES))
    Generator(config, CLASSES).save_pretrained(out / "generator/final")
