"""`python -m sweettok.eval` is `sweettok eval`."""

import sys

from sweettok.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
