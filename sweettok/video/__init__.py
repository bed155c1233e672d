"""Video files and clips of any length and size, for any tokenizer that implements `ClipTokenizer`."""
