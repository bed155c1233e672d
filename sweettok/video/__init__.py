"""Files and clips of any length and size through a tokenizer: `python -m sweettok.video`."""
