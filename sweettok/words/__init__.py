"""The words of video tokens: counts, pictures, and few-shot classification from words."""
