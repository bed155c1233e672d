"""VTok: a video as the spatial tokens of one key frame and one token for each other moment (arXiv 2602.04202)."""
