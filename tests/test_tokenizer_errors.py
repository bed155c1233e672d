"""What the tokenizer refuses, and that it says what came, what was expected and what to do."""

import numpy as np
import pytest
import tiny
import torch

from sweettok.priors.graph import Prior
from sweettok.tokenizer.config import WordsConfig
from sweettok.tokenizer.model import SweetTok


@pytest.fixture(scope="module")
def model():
    return tiny.tokenizer()


@pytest.fixture(scope="module")
def video():
    return tiny.clips(0, 1, 2)


@pytest.fixture(scope="module")
def ids(model, video):
    return model.encode(video).ids


def frames(*shape, dtype=torch.float32, value=0):
    return torch.full(shape, value, dtype=dtype)


WRONG_VIDEOS = {
    "one clip without a batch": (frames(3, 9, 16, 16), r"must have shape \(batch, 3, .* got \(3, 9, 16, 16\)"),
    "channels last": (frames(1, 9, 16, 16, 3), r"must have shape \(batch, 3, .* got \(1, 9, 16, 16, 3\)"),
    "grey": (frames(1, 1, 9, 16, 16), r"got \(1, 1, 9, 16, 16\)"),
    "no clips": (frames(0, 3, 9, 16, 16), "holds no pixels"),
    "integers": (frames(1, 3, 9, 16, 16, dtype=torch.int32), "must be uint8 or floating point, got torch.int32"),
    "an array": (np.zeros((1, 3, 9, 16, 16), dtype=np.float32), "must be a torch tensor, got ndarray"),
    "nothing": (None, "must be a torch tensor, got NoneType"),
    "8 frames": (frames(1, 3, 8, 16, 16), r"8 frames do not fit: 1 \+ a multiple of 4 .* \(5 or 9\)"),
    "10 frames": (frames(1, 3, 10, 16, 16), r"10 frames do not fit: .* \(9 or 13\)"),
    "other size": (frames(1, 3, 9, 32, 16), "frames are 32x16, but this tokenizer's .* are for 16x16"),
}


@pytest.mark.parametrize("case", WRONG_VIDEOS)
def test_wrong_videos_are_refused(model, case):
    video, message = WRONG_VIDEOS[case]
    for take in (model.encode, model, model.predict):
        with pytest.raises(ValueError, match=message):
            take(video)


@pytest.mark.parametrize("value", [0.7, -1.0, float("nan"), float("inf")])
def test_values_out_of_range_are_refused(model, value):
    video = tiny.clip()
    video[0, 1, 3, 5, 7] = value
    with pytest.raises(ValueError, match=r"must lie in \[-0.5, 0.5\]"):
        model.encode(video)


def put(place, value):
    def change(ids):
        ids[1, place] = value
        return ids

    return change


WRONG_IDS = {
    "negative": (put(0, -1), "id -1 at position 0 of clip 1 is no adjective: those are 0..10"),
    "too large": (put(59, 48), "id 48 at position 59 of clip 1 is no verb: those are 31..47"),
    "noun for an adjective": (put(3, 11), "id 11 at position 3 of clip 1 is no adjective: those are 0..10"),
    "adjective for a noun": (put(8, 10), "id 10 at position 8 of clip 1 is no noun: those are 11..23"),
    "verb for an adverb": (put(12, 31), "id 31 at position 12 of clip 1 is no adverb: those are 24..30"),
    "floats": (lambda ids: ids.float(), "ids must be integers, got torch.float32"),
    "one clip without a batch": (lambda ids: ids[0], r"must have shape \(batch >= 1, 60\), got \(60,\)"),
    "one id too few": (lambda ids: ids[:, 1:], r"must have shape \(batch >= 1, 60\), got \(3, 59\)"),
    "no clips": (lambda ids: ids[:0], r"got \(0, 60\)"),
    "a list": (lambda ids: ids.tolist(), "must be a torch tensor, got list"),
}


@pytest.mark.parametrize("case", WRONG_IDS)
def test_wrong_ids_are_refused(model, ids, case):
    change, message = WRONG_IDS[case]
    with pytest.raises(ValueError, match=message):
        model.decode(change(ids.clone()))


@pytest.mark.parametrize(
    ("num_frames", "message"),
    [(0, "0 frames do not fit"), (6, r"\(5 or 9\)"), (1, "at least 5 frames are needed"), (-3, "-3 frames do not fit")],
)
def test_wrong_numbers_of_frames_are_refused(model, ids, num_frames, message):
    with pytest.raises(ValueError, match=message):
        model.decode(ids, num_frames=num_frames)


def test_no_pixel_decoder(video):
    model = tiny.tokenizer(tiny.tokenizer_config(pixel_path="none"))
    assert model.pixel_decoder is None
    ids = model.encode(video).ids
    for use in (lambda: model.decode(ids), lambda: model(video)):
        with pytest.raises(ValueError, match="has no pixel decoder: load stage-2 weights"):
            use()
    with pytest.raises(ValueError, match="has no pixel decoder"):
        model.use_proxy(tiny.proxy())


def test_use_proxy(video):
    model, proxy = tiny.tokenizer(tiny.tokenizer_config(pixel_path="argmax")), tiny.proxy(seed=1)
    model.use_proxy(proxy)
    logits = model.predict(video).logits
    assert torch.equal(model.to_pixels(logits), proxy.decode(logits.argmax(1)))
    model.use_proxy(tiny.proxy(tiny.proxy_config(num_frames=5, height=24)))  # trained at another size: no matter
    with pytest.raises(ValueError, match="num_codes=32.* but the proxy is .*num_codes=16"):
        model.use_proxy(tiny.proxy(tiny.proxy_config(num_codes=16)))


def test_prior_of_another_size():
    words = WordsConfig(adjectives=12, nouns=13, verbs=2)
    with pytest.raises(ValueError, match="adjectives: 12 configured, 11 in the prior; verbs: 2 configured, 17 in the"):
        SweetTok(tiny.tokenizer_config(words=words), tiny.prior())
    found = SweetTok(tiny.tokenizer_config(words=WordsConfig(nouns=13)), tiny.prior()).config.words
    assert found == WordsConfig(adjectives=11, nouns=13, adverbs=7, verbs=17)


def test_exchanged_priors_are_noticed():
    prior = tiny.prior()
    words = SweetTok(tiny.tokenizer_config(), prior).config.words
    with pytest.raises(ValueError, match="the prior does not fit"):
        SweetTok(tiny.tokenizer_config(words=words), Prior(prior.temporal, prior.spatial))
