"""The page, in Gradio, and its server: no telemetry, no public link, no files left behind."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from sweettok.data.writer import enlarge
from sweettok.demo import html
from sweettok.demo.clips import Clip, Limits, read_upload
from sweettok.demo.models import Models, analyse, sample, swap

SAMPLES = 4  # generated clips shown at once
WAITING = 16  # requests that wait; others are asked to come again
KEPT = 3600  # seconds that uploaded files are kept, unless the server ends before
ABOUT = """# SweetTok
A video tokenizer whose tokens are words. A clip becomes a short list of words, adjectives and nouns for its appearance,
adverbs and verbs for its motion; from these words alone, the reconstruction is decoded."""
GENERATE = "New clips, drawn word by word by the generator and decoded by the tokenizer."
SWAP = "The appearance of one clip (its adjectives and nouns) with the motion of another (its adverbs and verbs)."


@dataclass(frozen=True)
class Page:
    """Answers the page's requests with HTML; mistakes of the user get one line."""

    models: Models
    examples: Sequence[Clip]
    limits: Limits = field(default_factory=Limits)
    fps: float = 8.0
    enlargement: str = "bicubic"  # see `data.writer.enlarge`

    def clip(self, index: int | None, upload: str | None) -> Clip:
        """The uploaded clip, or else an example."""
        if upload is not None:
            return read_upload(upload, self.models.tokenizer, self.limits)
        if index is None:
            raise ValueError("choose an example or upload a clip first")
        return self.examples[index]

    def reconstruct(self, index: int | None, upload: str | None) -> tuple[str, str]:
        """The clip with its reconstruction, and its words."""
        clip = self.clip(index, upload)
        result = analyse(self.models.tokenizer, clip.video)
        return html.analysis(result, clip.about, self.fps, self.enlargement), html.words(result, self.fps)

    def swap(self, first: int | None, upload: str | None, second: int | None, other: str | None) -> str:
        tokenizer, clips = self.models.tokenizer, [self.clip(first, upload), self.clip(second, other)]
        mixed = swap(tokenizer, *(clip.video for clip in clips))
        panels = []
        for clip, result in zip(clips, mixed, strict=True):
            panels += [clip.video, analyse(tokenizer, clip.video).reconstruction, result]
        titles = ("Original", "Reconstruction", "Motion of the other")
        about = html.hint(f"Above: {clips[0].name}. Below: {clips[1].name}.")
        return about + html.side_by_side(panels, titles, self.fps, self.enlargement)

    def generate(self, label: str | None, seed: float, scale: float, top_p: float, progress: Any) -> str:
        total, done = self.models.tokenizer.layout.length, 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            if done % 16 == 0:
                progress((done, total), unit="words")

        if seed is None or seed != int(seed) or not 0 <= seed < 2**31:
            raise ValueError("the seed must be a whole number from 0 to 2147483647")
        clips = sample(self.models, label, SAMPLES, int(seed), advance, cfg_scale=scale, top_p=top_p)
        about = html.hint(f"{SAMPLES} clips" + (f" of the class {label}" if label else "") + f", seed {int(seed)}")
        return about + html.side_by_side(list(clips), ["", ""], self.fps, self.enlargement)


def answered(work: Callable[..., Any], results: int = 1) -> Callable[..., Any]:
    """`work` with one line as its (first) result where it raises an error that the user can mend."""

    def run(*inputs: Any) -> Any:
        try:
            return work(*inputs)
        except (ValueError, OSError) as error:
            line = html.message(" ".join(str(error).split()))
            return line if results == 1 else (line, *[""] * (results - 1))

    return run


@contextmanager
def serving(page: Page, host: str = "127.0.0.1", port: int = 7860) -> Iterator[str]:
    """Serve the page on a thread during the block, which gets its address.

    Raises ImportError without Gradio, OSError if the port cannot be used.
    """
    with tempfile.TemporaryDirectory(prefix="sweettok-demo-") as folder:
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": folder}  # read when it is imported
        try:
            import gradio as gr
        except ImportError as error:
            raise ImportError("the page needs Gradio: pip install 'sweettok[demo]'") from error
        blocks = build(gr, page, Path(folder))
        blocks.queue(max_size=WAITING, default_concurrency_limit=1)
        font = ["system-ui", "sans-serif"]  # nothing is loaded from other servers
        try:
            _, address, _ = blocks.launch(
                server_name=host,
                server_port=port,
                share=False,
                quiet=True,
                prevent_thread_lock=True,
                max_file_size=f"{page.limits.megabytes}mb",
                ssr_mode=False,
                footer_links=[],
                run_history=False,
                theme=gr.themes.Default(primary_hue="blue", font=font, font_mono=["ui-monospace", "monospace"]),
                css=html.STYLE,
            )
        except OSError as error:
            raise OSError(f"port {port} of {host} cannot be used: choose another port") from error
        try:
            yield address
        finally:
            blocks.close(verbose=False)


def build(gr: Any, page: Page, folder: Path) -> Any:
    """The page as Gradio Blocks; thumbnails of the examples are written to `folder`."""
    thumbnails = []
    for number, clip in enumerate(page.examples):
        path = folder / f"example_{number}.webp"
        large = enlarge(clip.video, 128, page.enlargement)
        frames = [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in large.unbind(1)]
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=round(1000 / page.fps), loop=0)
        thumbnails.append((str(path), clip.name))
    with gr.Blocks(title="SweetTok", analytics_enabled=False, delete_cache=(KEPT // 6, KEPT)) as blocks:
        gr.Markdown(ABOUT)
        with gr.Tab("Reconstruct"):
            _reconstruct_tab(gr, page, thumbnails)
        with gr.Tab("Swap"):
            _swap_tab(gr, page, thumbnails)
        if page.models.generator is not None:
            with gr.Tab("Generate"):
                _generate_tab(gr, page)
    return blocks


def _picker(gr: Any, thumbnails: list[tuple[str, str]], name: str) -> tuple[Any, Any, Any]:
    """The choice of an example as an event, its number, and an upload that is used instead."""
    gallery = gr.Gallery(
        thumbnails,
        columns=4,
        show_label=False,
        allow_preview=False,
        interactive=False,
        buttons=[],
        elem_id=f"{name}-examples",
        elem_classes="st-examples",
    )
    upload = gr.File(label="or upload a video", elem_id=f"{name}-upload", height=140)
    chosen = gr.State(None)

    def choose(event: gr.SelectData) -> tuple[int, None]:
        return event.index, None

    hidden = {"api_visibility": "private", "show_progress": "hidden"}
    return gallery.select(choose, None, [chosen, upload], **hidden), chosen, upload


def _reconstruct_tab(gr: Any, page: Page, thumbnails: list[tuple[str, str]]) -> None:
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            gr.Markdown("### Choose an example")
            picked, chosen, upload = _picker(gr, thumbnails, "clip")
        with gr.Column(scale=4, min_width=480):
            result = gr.HTML(html.hint("Choose an example or upload a video."), elem_id="clip-result")
    words = gr.HTML(elem_id="clip-words")
    work = answered(page.reconstruct, results=2)
    for event in (picked.then, upload.upload):
        _on(event, work, [chosen, upload], [result, words])


def _swap_tab(gr: Any, page: Page, thumbnails: list[tuple[str, str]]) -> None:
    inputs = []
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            for number, name in enumerate(("first", "second"), 1):
                gr.Markdown(f"### Choose the {name} clip")
                inputs += _picker(gr, thumbnails, f"clip{number}")[1:]
            button = gr.Button("Swap", variant="primary", elem_id="swap")
        with gr.Column(scale=4, min_width=480):
            result = gr.HTML(html.hint(SWAP), elem_id="swap-result")

    _on(button.click, answered(page.swap), inputs, result)


def _generate_tab(gr: Any, page: Page) -> None:
    names, guided = page.models.class_names, page.models.guidance
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            label = gr.Dropdown(names, value=names[0] if names else None, label="Class", visible=bool(names))
            seed = gr.Number(0, label="Seed", precision=0, minimum=0)
            scale = gr.Slider(1, 6, 2 if guided else 1, label="Guidance scale", visible=guided)
            top_p = gr.Slider(0.05, 1, 0.9, label="Top-p")
            button = gr.Button("Generate", variant="primary", elem_id="generate")
        with gr.Column(scale=4, min_width=480):
            result = gr.HTML(html.hint(GENERATE), elem_id="generate-result")
    shown = gr.Progress()

    def generate(name: str | None, seed: float, scale: float, top_p: float, progress: Any = shown) -> str:
        return answered(page.generate)(name, seed, scale, top_p, progress)

    _on(button.click, generate, [label, seed, scale, top_p], result)


def _on(event: Any, work: Callable[..., Any], inputs: list[Any], results: Any) -> None:
    """All work shares one place in the queue, since it shares the processor."""
    event(work, inputs, results, concurrency_limit=1, concurrency_id="models", api_visibility="private")
