#!/usr/bin/env bash
# Create .venv with the library and everything that its tests need; reuse it if the requirements have not changed.
set -euo pipefail
cd "$(dirname "$0")/.."

wanted=$(cat requirements.txt pyproject.toml | cksum)
if [ "$(cat .venv/requirements.cksum 2>/dev/null || true)" = "$wanted" ]; then
  echo "setup: reusing .venv"
  exit 0
fi
echo "setup: creating .venv (PyTorch is large: this takes a few minutes)"
python3 -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
echo "$wanted" > .venv/requirements.cksum
