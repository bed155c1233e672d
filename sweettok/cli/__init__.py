"""The command line: `sweettok`, or `python -m sweettok`. `sweettok.cli.main` is its entry point."""
