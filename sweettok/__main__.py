"""`python -m sweettok` is the `sweettok` command."""

import sys

from sweettok.cli.main import main

sys.exit(main())
