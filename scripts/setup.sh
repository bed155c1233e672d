#!/usr/bin/env bash
# Create .venv with the library and everything that its tests need, or with the library alone, or with what VTok needs:
# setup.sh [dev | core | vtok].
# It is reused if the requirements have not changed.
set -euo pipefail
cd "$(dirname "$0")/.."

part=${1:-dev}
wanted=$(cat requirements.txt pyproject.toml | cksum)
installed() { [ "$(cat ".venv/$1.cksum" 2>/dev/null || true)" = "$wanted" ]; }
if installed dev || installed "$part"; then
  echo "setup: reusing .venv"
  exit 0
fi
echo "setup: installing into .venv (PyTorch is large: this takes a few minutes)"
installed core || python3 -m venv --clear .venv
extras=
if [ "$part" != core ]; then extras="[$part]"; fi
.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".$extras"
for done in core "$part"; do echo "$wanted" > ".venv/$done.cksum"; done
