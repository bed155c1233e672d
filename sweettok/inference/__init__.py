"""Models over many clips: videos to token shards, and samples of a generator."""
