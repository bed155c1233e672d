"""What clips say, and what it is good for: summaries, pictures, few-shot recognition: `python -m sweettok.words`."""
