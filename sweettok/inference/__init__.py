"""From videos to token shards, and from a trained generator to new ones: `python -m sweettok.inference`."""
