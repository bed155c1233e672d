"""Token shards whose nouns determine the class, for the tests of sweettok.words."""

from pathlib import Path

import tiny
import torch

from sweettok.data.lists import clips_hash
from sweettok.data.manifest import TokenManifest
from sweettok.data.tokens import ShardWriter
from sweettok.tokenizer.layout import TokenLayout

CLASSES = ("delta", "alpha", "charlie", "bravo", "echo")  # not in alphabetical order
EACH = 6  # clips of a class


def random_ids(layout: TokenLayout, count: int, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    parts = [s.vocab_start + torch.randint(s.vocab_size, (count, s.length), generator=rng) for s in layout.segments]
    return torch.cat(parts, dim=1)


def write_shards(folder: Path, views: int = 1) -> Path:
    """30 clips of the tiny tokenizer; those of class c have the nouns 2c and 2c + 1, other words are random.

    With more `views`, all but the first have random nouns.
    """
    tokenizer = tiny.tokenizer()
    layout, count = tokenizer.layout, len(CLASSES) * EACH
    labels = tuple(i % len(CLASSES) for i in range(count))
    keys = tuple(f"videos/{CLASSES[label]}_{i:02d}" for i, label in enumerate(labels))
    ids = random_ids(layout, count * views)
    nouns = layout.segment("noun")
    choice = torch.randint(2, (count, nouns.length), generator=torch.Generator().manual_seed(1))
    choice[:, :2] = torch.tensor([0, 1])
    ids[::views, nouns.places] = nouns.vocab_start + 2 * torch.tensor(labels)[:, None] + choice
    manifest = TokenManifest(
        kind="tokenized",
        tokenizer_hash=tokenizer.ids_hash(),
        layout=layout,
        num_clips=count,
        clips_hash=clips_hash(keys, labels),
        num_frames=9,
        clips_per_video=views,
        num_classes=len(CLASSES),
        class_names=CLASSES,
        rows_per_shard=16,
    )
    writer = ShardWriter(folder, manifest, keys, labels)
    for rows in writer.pending():
        writer.write(rows, ids[rows.start : rows.stop])
    return folder
