"""Run the notebooks on the quickstart's models and keep their outputs: python scripts/notebooks/execute.py"""

import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent.parent


def main() -> None:
    for path in sorted(Path(__file__).parent.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
        resources = {"metadata": {"path": str(ROOT)}}
        NotebookClient(notebook, timeout=600, resources=resources, record_timing=False).execute()
        notebook.metadata = {name: notebook.metadata[name] for name in ("kernelspec", "language_info")}
        text = nbformat.writes(notebook)
        path.write_text(re.sub(re.escape(f"{ROOT}/"), "", text) + "\n", encoding="utf-8")
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
