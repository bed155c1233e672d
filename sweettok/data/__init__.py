"""Clips: reading and writing files, lists, checks, datasets and samplers, synthetic clips. Knows nothing of models."""
