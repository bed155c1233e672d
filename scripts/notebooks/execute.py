"""Run the notebooks on the quickstart's models and keep their outputs: python scripts/notebooks/execute.py"""

import base64
import io
import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent.parent


def clean(notebook: nbformat.NotebookNode) -> None:
    """Drop warnings on stderr, and write the pictures of the outputs with 128 colours, a third of the size."""
    for cell in notebook.cells:
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    for data in (out.get("data", {}) for cell in notebook.cells for out in cell.get("outputs", [])):
        if "image/png" in data:
            image = Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).convert("RGB")
            buffer = io.BytesIO()
            image.quantize(128, dither=Image.Dither.NONE).save(buffer, format="PNG", optimize=True)
            data["image/png"] = base64.b64encode(buffer.getvalue()).decode()


def main() -> None:
    for path in sorted(Path(__file__).parent.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
        resources = {"metadata": {"path": str(ROOT)}}
        NotebookClient(notebook, timeout=600, resources=resources, record_timing=False).execute()
        notebook.metadata = {name: notebook.metadata[name] for name in ("kernelspec", "language_info")}
        clean(notebook)
        text = nbformat.writes(notebook)
        path.write_text(re.sub(re.escape(f"{ROOT}/"), "", text) + "\n", encoding="utf-8")
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
