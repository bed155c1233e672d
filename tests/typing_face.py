"""What a user's type checker makes of the library: `mypy` reads this file, nothing runs it.

`assert_type` holds each name and method to its type. Lines with `type: ignore` are wrong uses: were one of them taken
for right, mypy would call its comment unused.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from typing_extensions import assert_type

import sweettok
from sweettok import (
    Generator,
    LongTokens,
    PixelFlow,
    ProxyTokenizer,
    StateAdapter,
    SweetTok,
    TokenLayout,
    TokenOutput,
    VideoLanguageModel,
    VisualTokens,
    VTok,
    load_config,
    read_clip,
)
from sweettok.generator.config import GeneratorConfig
from sweettok.pixels import to_float, to_uint8
from sweettok.proxy.config import ProxyConfig
from sweettok.segments import Segment
from sweettok.tokenizer.config import TokenizerConfig
from sweettok.tokenizer.output import EmbeddingMatrix, QueryFeatures, WordCount
from sweettok.train.config import RunConfig


def loading(video: Tensor) -> None:
    tok = SweetTok.from_pretrained("folder")
    assert_type(tok, SweetTok)
    assert_type(SweetTok.from_pretrained("user/name", revision="main", local_files_only=True), SweetTok)
    assert_type(SweetTok.from_release("weights.bin", priors=Path("priors")), SweetTok)
    assert_type(ProxyTokenizer.from_pretrained(Path("folder")), ProxyTokenizer)
    assert_type(ProxyTokenizer.from_release("weights.bin"), ProxyTokenizer)
    assert_type(Generator.from_pretrained("folder"), Generator)
    assert_type(tok.to_release(), dict[str, Tensor])
    assert_type(tok.save_pretrained("folder", report="report.json"), None)
    assert_type(tok.push_to_hub("user/name", private=True), str)
    assert_type(tok.config, TokenizerConfig)
    assert_type(load_config("run.yaml", ["train.max_steps=1"]), RunConfig)
    assert_type(nn.ModuleList([tok])[0], nn.Module)
    assert_type(tok.eval(), SweetTok)
    assert_type(sweettok.__version__, str)
    SweetTok.from_pretrained()  # type: ignore[call-arg]
    Generator.from_pretrained("folder").encode(video)  # type: ignore[operator]
    load_config("run.yaml", {"train.max_steps": 1})  # type: ignore[arg-type]
    sweettok.Sweettok  # type: ignore[attr-defined]  # noqa: B018


def encoding(tok: SweetTok, video: Tensor) -> None:
    assert_type(read_clip("a.mp4", frames=17, size=(256, 256)), Tensor)
    out = tok.encode(video)
    assert_type(out, TokenOutput)
    assert_type(tok.encode("a.mp4", resize="pad", stride=2, position="center"), TokenOutput)
    assert_type(tok.encode([Path("a.mp4"), "b.mp4"]), TokenOutput)
    for batch in tok.encode_batches(["a.mp4", video[0]], batch_size=4):
        assert_type(batch, TokenOutput)
    assert_type(out.ids, Tensor)
    assert_type(out[0], TokenOutput)
    assert_type(out.to("cpu"), TokenOutput)
    assert_type(len(out), int)
    assert_type(out.words(clip=0, max_queries=3), dict[str, list[str]])
    assert_type(out.summary(top=3), dict[str, list[WordCount]])
    assert_type(tok.decode(out.ids, num_frames=9), Tensor)
    assert_type(tok.describe(out.ids), TokenOutput)
    assert_type(tok.read("a.mp4"), Tensor)
    assert_type(to_float(to_uint8(video)), Tensor)
    tok.encode(0)  # type: ignore[arg-type]
    tok.encode(video, fps=8)  # type: ignore[call-arg]
    assert_type(tok.decode(out), Tensor)
    tok.decode([1, 2])  # type: ignore[arg-type]
    out.word()  # type: ignore[attr-defined]
    read_clip("a.mp4", 17)  # type: ignore[call-arg]


def long_videos(tok: SweetTok, video: Tensor) -> None:
    tokens = tok.encode_long("a.mp4", overlap=2)
    assert_type(tokens, LongTokens)
    assert_type(tokens.ids, Tensor)
    assert_type(tokens.seconds, float | None)
    assert_type(LongTokens.load("a.safetensors"), LongTokens)
    assert_type(tok.decode_long(tokens), Tensor)
    assert_type(tok.decode_long(tokens, out="a.mp4"), Path)
    assert_type(tok.reconstruct(video), Tensor)
    assert_type(tok.reconstruct("a.mp4", out="b.mp4"), Path)
    tok.decode_long(video)  # type: ignore[call-overload]


def sizes_and_features(tok: SweetTok, video: Tensor) -> None:
    assert_type(tok.layout, TokenLayout)
    assert_type(tok.layout.segments, tuple[Segment, ...])
    assert_type(tok.vocab_size, int)
    assert_type(tok.vocabulary, tuple[tuple[str, ...], ...])
    assert_type(tok.device, torch.device)
    assert_type(tok.ids_hash(), str)
    assert_type(tok.num_tokens(T=17, H=256, W=256), int)
    assert_type(tok.bits(), float)
    assert_type(tok.at_size(128, 128), SweetTok)
    assert_type(tok.features(video), QueryFeatures)
    assert_type(tok.features(video).temporal, Tensor | None)
    assert_type(tok.vectors(video), Tensor)
    assert_type(tok.embedding_matrix(offset=32000), EmbeddingMatrix)
    tok.num_tokens("17")  # type: ignore[arg-type]
    tok.vocab_size = 5  # type: ignore[misc]
    tok.layout.length = 5  # type: ignore[misc]


def generating(gen: Generator, proxy: ProxyTokenizer, video: Tensor) -> None:
    assert_type(gen.sample(["rise", 3], cfg_scale=1.5, temperature=0.9, top_k=100, top_p=0.9, seed=0), Tensor)
    assert_type(gen.sample(given=video), Tensor)
    assert_type(gen.class_names, tuple[str, ...] | None)
    assert_type(gen.config, GeneratorConfig)
    assert_type(proxy.encode(video), Tensor)
    assert_type(proxy.decode(proxy.encode(video)), Tensor)
    assert_type(proxy.config, ProxyConfig)
    gen.sample("rise", seed="0")  # type: ignore[arg-type]
    gen.sample(["rise"], 0)  # type: ignore[call-arg, arg-type]


def visual_tokens(video: Tensor) -> None:
    tok = VTok.from_pretrained("folder")
    assert_type(tok, VTok)
    tokens = tok.encode(video, fps=24)
    assert_type(tokens, VisualTokens)
    assert_type(tok.encode(["a.mp4", Path("b.mp4")], resize="crop", key_frame="medoid").values, Tensor)
    assert_type(VisualTokens.join(list(tok.stream("a.mp4"))), VisualTokens)
    assert_type(tok.project(tok.features(video, 24)).to("cpu"), VisualTokens)
    assert_type(tok.num_tokens(seconds=5), int)
    tok.encode(3, fps=24)  # type: ignore[arg-type]


def language(tokens: VisualTokens) -> None:
    model = VideoLanguageModel.from_pretrained("folder")
    assert_type(model, VideoLanguageModel)
    assert_type(model.answer(tokens, "what moves?", ["ball", "box"]), str | list[str])
    generated = model.generate("a ball falls", 5.0, seed=0, cfg_scale=2.0)
    assert_type(generated.tokens, VisualTokens)
    assert_type(generated.states, Tensor)
    assert_type(model.states(["a ball falls"], tokens), Tensor)
    model.generate(5.0, "a ball falls")  # type: ignore[arg-type]


def video_decoder(states: Tensor, video: Tensor) -> None:
    decoder = PixelFlow.from_pretrained("folder")
    assert_type(decoder, PixelFlow)
    assert_type(decoder.loss(video, states), Tensor)
    assert_type(decoder.sample(states, 17, 64, seed=0), Tensor)
    assert_type(StateAdapter.from_pretrained("folder"), StateAdapter)
    decoder.sample(states, 17, "64")  # type: ignore[arg-type]
