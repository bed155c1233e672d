"""The library without decord, without its extras, and without what only Unix has: it imports, encodes and decodes."""

import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
BARE = """
import importlib, pathlib, signal, sys
from importlib.machinery import PathFinder

ABSENT = {"decord", "diffusers", "gradio", "IPython", "matplotlib", "mkdocs", "nbformat", "peft", "spacy",
          "tensorboard", "tensorflow", "torchmetrics", "transformers", "wandb"}


class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in ABSENT else super().find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = Bare
sys.modules["fcntl"] = None  # as on Windows
del signal.SIGCHLD

import sweettok
from sweettok.data.writer import write_video
from sweettok.pixels import to_uint8

package = pathlib.Path(sweettok.__file__).parent
for path in sorted(package.rglob("*.py")):
    name = ".".join(path.relative_to(package.parent).with_suffix("").parts)
    if path.name != "__main__.py":
        importlib.import_module(name.removesuffix(".__init__"))
found = ABSENT & {name.partition(".")[0] for name in sys.modules}
assert not found, found

import tiny

video, tokenizer = pathlib.Path(sys.argv[1]) / "clip.mkv", tiny.tokenizer()
write_video(video, to_uint8(tiny.clip())[0], 8, lossless=True)
out = tokenizer.encode(video)
print(tuple(out.ids.shape), tuple(tokenizer.decode(out.ids).shape))
"""


def test_the_core_alone(tmp_path):
    command = [sys.executable, "-c", BARE, str(tmp_path)]
    done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "(1, 60) (1, 3, 9, 16, 16)\n"
