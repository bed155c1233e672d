"""A page in the browser to try a tokenizer: reconstructions, words, swaps, generated clips."""
