"""Language models that classify clips: a local server, a tiny local model, and the file of answers."""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import tiny
import torch
import word_shards

from sweettok.cli.main import main
from sweettok.store import InUseError
from sweettok.words.answers import AnswerCache, ask, question_key
from sweettok.words.endpoint import Endpoint, EndpointError
from sweettok.words.models import Answer, LocalModel, common_length, continuation, parse_choice

NAMES = ("fall", "rise", "rise-again")
KEY = "a-secret-key"


def completion(*messages: str) -> bytes:
    choices = [{"index": i, "message": {"content": text}} for i, text in enumerate(messages)]
    return json.dumps({"choices": choices, "usage": {"prompt_tokens": 40, "completion_tokens": 3}}).encode()


class Server(ThreadingHTTPServer):
    """Answers each request by `reply(number, path, body)`: bytes, or a status with headers; None is never answered."""

    daemon_threads = True

    def __init__(self):
        self.asked, self.headers_seen, self.lock, self.over = [], [], threading.Lock(), threading.Event()
        self.reply = lambda number, path, body: completion("rise")
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append((self.path, body))
            self.server.headers_seen.append({name.lower(): value for name, value in self.headers.items()})
            number = len(self.server.asked) - 1
        reply = self.server.reply(number, self.path, body)
        if reply is None:
            self.server.over.wait()
            return
        status, headers, content = (200, {}, reply) if isinstance(reply, bytes) else reply
        self.send_response(status)
        for name, value in {**headers, "Content-Length": len(content)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *parts):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("no_proxy", "*")
    server = Server()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()


def endpoint(server, **changes) -> tuple[Endpoint, list[float]]:
    """An endpoint that does not wait, and what it would have waited."""
    waits: list[float] = []
    return Endpoint(server.url, "toy", sleep=waits.append, **changes), waits


# ---------------------------------------------------------------------------------------------------------- endpoint


def test_a_chat_request_and_its_answer(server):
    asked, _ = endpoint(server, body={"max_tokens": None, "max_completion_tokens": 16, "seed": 3})
    answer = asked.answer("the prompt", NAMES)
    assert answer == Answer("rise", "rise", None, 40, 3)
    path, body = server.asked[0]
    assert path == "/v1/chat/completions"
    assert body == {
        "model": "toy",
        "messages": [{"role": "user", "content": "the prompt"}],
        "temperature": 0,
        "max_completion_tokens": 16,
        "seed": 3,
    }
    assert server.headers_seen[0]["authorization"] == f"Bearer {KEY}"


def test_no_key_is_sent_without_one(server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    endpoint(server)[0].answer("prompt", NAMES)
    assert "authorization" not in server.headers_seen[0]


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        (" rise\n", "rise"),
        ("Rise.", "rise"),
        ("**rise-again**", "rise-again"),
        ('"fall"', "fall"),
        ("It is rise", None),
        ("", None),
    ],
)
def test_free_answers_begin_with_a_name(text, choice):
    assert parse_choice(text, NAMES) == choice


def test_a_schema_allows_names_only(server):
    server.reply = lambda number, path, body: completion('{"answer": "rise-again"}' if number == 0 else "fall")
    asked, _ = endpoint(server, answers="schema")
    assert asked.answer("prompt", NAMES).choice == "rise-again"
    assert asked.answer("prompt", NAMES).choice == "fall"  # of a server that takes no notice of the schema
    schema = server.asked[0][1]["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["answer"]["enum"] == list(NAMES)


def test_failures_that_may_pass_are_tried_again(server):
    failures = [
        (500, {}, b"oops"),
        (429, {"Retry-After": "7"}, b"slow down"),
        b"<html>",
        None,
        b'{"choices": []}',
        completion("fall"),
    ]
    server.reply = lambda number, path, body: failures[number]
    asked, waits = endpoint(server, timeout=0.3)
    assert asked.answer("prompt", NAMES).choice == "fall"
    assert waits == [1, 7, 4, 8, 16] and asked.attempts == 6


def test_the_last_failure_is_reported(server):
    server.reply = lambda number, path, body: (503, {}, b"too many guests")
    asked, waits = endpoint(server, retries=2)
    with pytest.raises(EndpointError, match="failed in 3 attempts, the last time with status 503: too many guests"):
        asked.answer("prompt", NAMES)
    assert len(waits) == 2


def test_refusals_are_not_tried_again(server):
    server.reply = lambda number, path, body: (404, {}, b"no model of the name toy")
    with pytest.raises(ValueError, match="status 404: no model of the name toy") as refused:
        endpoint(server)[0].answer("prompt", NAMES)
    assert len(server.asked) == 1 and KEY not in str(refused.value)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_the_key_does_not_follow_a_redirect(server, status):
    other = Server()
    server.reply = lambda number, path, body: (status, {"Location": f"{other.url}/chat/completions"}, b"")
    with pytest.raises(ValueError, match=f"a redirect to {other.url}/.*: give the final address") as refused:
        endpoint(server)[0].answer("prompt", NAMES)
    assert other.asked == [] and len(server.asked) == 1 and KEY not in str(refused.value)
    other.shutdown()
    other.server_close()


def test_a_key_that_cannot_be_sent_is_not_shown(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\nX")
    with pytest.raises(ValueError, match="OPENAI_API_KEY contains characters that are not allowed") as refused:
        Endpoint("http://localhost", "toy")
    assert KEY not in str(refused.value)


def test_an_endpoint_that_is_not_there():
    server = Server()
    server.shutdown()
    server.server_close()
    with pytest.raises(EndpointError, match="failed in 2 attempts"):
        endpoint(server, retries=1)[0].answer("prompt", NAMES)


def test_texts_with_other_ends_of_lines_are_kept(tmp_path):
    answer = Answer(None, "one\u2028two\r\nthree\x85")
    with AnswerCache(tmp_path / "a") as cache:
        cache.put("key", answer)
    with AnswerCache(tmp_path / "a") as cache:
        assert cache.answers["key"] == answer


@pytest.mark.parametrize(
    "wrong",
    [
        {"timeout": 0},
        {"retries": -1},
        {"concurrency": 0},
        {"answers": "loud"},
        {"base_url": "localhost"},
        {"base_url": "http://localhost:port"},
        {"base_url": "http://"},
    ],
)
def test_settings_of_an_endpoint_are_checked(wrong):
    with pytest.raises(ValueError):
        Endpoint(**{"base_url": "http://localhost", "model": "toy", **wrong})


# ----------------------------------------------------------------------------------------------------------- answers

QUESTIONS = [(f"prompt {i}", NAMES) for i in range(6)]


class Toy:
    """Answers each prompt with its own last letter's name; fails at the given prompts."""

    concurrency = 1

    def __init__(self, *fails: str, name: str = "toy"):
        self.identity, self.fails, self.asked = {"model": name}, fails, []

    def answer(self, prompt, candidates):
        self.asked.append(prompt)
        if prompt in self.fails:
            raise EndpointError("broken off")
        return Answer(candidates[int(prompt[-1]) % 3], prompt_tokens=10, completion_tokens=2)


def ask_from(path, model, questions=QUESTIONS):
    with AnswerCache(path) as cache:
        return ask(model, questions, cache)


def test_an_interrupted_run_continues(tmp_path):
    path, first, second = tmp_path / "out" / "answers.jsonl", Toy("prompt 3"), Toy()
    with pytest.raises(EndpointError, match="broken off"):
        ask_from(path, first)
    before = path.read_bytes()
    path.write_bytes(before + b'{"key": "cut o')  # as by a kill
    answers, new = ask_from(path, second)
    assert path.read_bytes().startswith(before)  # only appended to
    assert first.asked[:4] == ["prompt 0", "prompt 1", "prompt 2", "prompt 3"]
    kept = [prompt for prompt in first.asked if prompt != "prompt 3"]
    assert sorted(kept + second.asked) == [prompt for prompt, _ in QUESTIONS]
    assert [answer.choice for answer in answers] == [NAMES[i % 3] for i in range(6)]
    assert len(new) == len(second.asked)
    assert ask_from(path, third := Toy()) == (answers, []) and not third.asked


def test_equal_questions_are_asked_once(tmp_path):
    toy = Toy()
    answers, new = ask_from(tmp_path / "a", toy, [QUESTIONS[1], QUESTIONS[0], QUESTIONS[1]])
    assert sorted(toy.asked) == ["prompt 0", "prompt 1"] and len(new) == 2
    assert [answer.choice for answer in answers] == ["rise", "fall", "rise"]


def test_answers_are_of_one_model_prompt_and_choice():
    keys = {
        question_key(Toy(), QUESTIONS[0]),
        question_key(Toy(name="other"), QUESTIONS[0]),
        question_key(Toy(), QUESTIONS[1]),
        question_key(Toy(), (QUESTIONS[0][0], NAMES[:2])),
    }
    assert len(keys) == 4 and question_key(Toy(), QUESTIONS[0]) in keys


def test_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "a").write_text('{"key": "x", "choice": "y"}\n{"step": 1}\n')
    with pytest.raises(ValueError, match="line 2 is not an answer"):
        AnswerCache(tmp_path / "a")
    (tmp_path / "b").write_text("notes without an end of line")
    with pytest.raises(ValueError, match="line 1 is not an answer"):
        AnswerCache(tmp_path / "b")
    assert (tmp_path / "b").read_text() == "notes without an end of line"


def test_one_process_at_a_time_uses_a_file(tmp_path):
    with AnswerCache(tmp_path / "a") as cache:
        cache.put("key", Answer("rise"))
        with pytest.raises(InUseError, match="is in use"):
            AnswerCache(tmp_path / "a")
    with AnswerCache(tmp_path / "a") as cache:
        assert cache.answers["key"] == Answer("rise")


def test_questions_are_asked_at_once(server, tmp_path):
    together = threading.Barrier(4)

    def reply(number, path, body):
        together.wait(timeout=20)  # breaks, and the server with it, unless four requests are under way
        return completion("rise")

    server.reply = reply
    asked, _ = endpoint(server, concurrency=4, retries=0)
    questions = [(f"prompt {i}", NAMES) for i in range(8)]
    assert len(ask_from(tmp_path / "a", asked, questions)[1]) == 8


# ------------------------------------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    tiny.tokenizer().save_pretrained(folder / "tokenizer")
    word_shards.write_shards(folder / "tokens")
    return folder


def reader_of_nouns(number, path, body):
    """Names the class of the example whose nouns are those of the query; noun 2c and 2c + 1 are of class c."""
    *examples, query = body["messages"][0]["content"].split("Input: ")[1:]

    def noun(text):
        return int(text.split("nouns: noun")[1].split(",")[0].split(";")[0].split(">")[0]) // 2

    named = {noun(text): text.split("Output: ")[1].strip() for text in examples}
    return completion(f" {named[noun(query)]}" if noun(query) else "I do not know.")


def test_an_endpoint_is_compared_with_the_baselines(server, work, tmp_path, capsys):
    server.reply = reader_of_nouns
    folders = {"--tokens": work / "tokens", "--checkpoint": work / "tokenizer", "--out": tmp_path}
    given = [
        "words",
        "fewshot",
        *(str(part) for pair in folders.items() for part in pair),
        "--num",
        "6",
        "--backend",
        "endpoint",
        "--base-url",
        server.url,
        "--model",
        "toy",
        "--kinds",
        "noun",
        "adverb",
        "--words",
        "2",
    ]
    assert main(given) == 0
    report, printed = json.loads((tmp_path / "report.json").read_text()), capsys.readouterr().out
    first = report["results"]["model"]
    assert first["classes"]["delta"] == {"queries": 6, "accuracy": 0.0, "predicted": {"(none)": 6}}  # class 0
    assert first["accuracy"] == pytest.approx(0.8) and first["without_class"] == 6
    assert first["minus"]["listed"]["accuracy"] == pytest.approx(0.8 - report["results"]["listed"]["accuracy"])
    assert report["cost"]["new"] == {"answers": 30, "prompt_tokens": 1200, "completion_tokens": 90}
    assert report["cost"]["requests"] == 30 and "toy, free" in printed and "6 answers without a class" in printed
    assert main(given) == 0  # all answers are there
    again = json.loads((tmp_path / "report.json").read_text())
    assert again["results"] == report["results"] and len(server.asked) == 30
    assert again["cost"]["new"]["answers"] == 0 and again["cost"]["all"] == report["cost"]["all"]
    assert not [path for path in tmp_path.iterdir() if KEY in path.read_text()]


# ------------------------------------------------------------------------------------------------------- local model

pytestmark = pytest.mark.filterwarnings("error::FutureWarning")  # of names that transformers will remove
LETTERS = sorted(set("".join(NAMES)) | set("Output: adnsky\n"))


class FakeTokenizer:
    """Letters, but "t: " and "e\n" are one token each, so that prompts and answers do not meet between tokens."""

    pad_token_id = eos_token_id = 0
    tokens = ["</s>", "t: ", "e\n", *LETTERS]

    def __call__(self, text):
        ids = []
        while text:
            token = max((t for t in self.tokens if text.startswith(t)), key=len)
            ids, text = [*ids, self.tokens.index(token)], text[len(token) :]
        return SimpleNamespace(input_ids=ids)

    def decode(self, ids, skip_special_tokens):
        return "".join(self.tokens[i] for i in ids.tolist() if i)


class FakeModel(torch.nn.Module):
    """Logits depend on all tokens so far, through a sum that is its memory."""

    def __init__(self):
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        size = len(FakeTokenizer.tokens)
        self.table = torch.nn.Parameter(torch.randn(size, size, generator=rng))
        self.config = SimpleNamespace(max_position_embeddings=64)

    def forward(self, input_ids, cache=None, use_cache=True):
        before = 0 if cache is None else cache[0]
        sums = self.table[input_ids].cumsum(1) + before
        if cache is not None:
            cache[0] = sums[:, -1:]  # in place, as caches are
        return SimpleNamespace(logits=sums, cache=cache or [sums[:, -1:]])

    def generate(self, fed, max_new_tokens, **options):
        assert options["do_sample"] is False
        for _ in range(max_new_tokens):
            fed = torch.cat((fed, self(fed).logits[:, -1:].argmax(-1)), dim=1)
        return fed


@pytest.fixture(params=["fake", "transformers"])
def folder(request, tmp_path, monkeypatch):
    """A folder with a tiny random model: a replacement of the library, and the library itself where it is installed."""
    if request.param == "fake":
        (tmp_path / "config.json").write_text("{}")
        fake = SimpleNamespace(
            AutoTokenizer=SimpleNamespace(from_pretrained=lambda folder, **options: FakeTokenizer()),
            AutoModelForCausalLM=SimpleNamespace(from_pretrained=lambda folder, **options: FakeModel()),
        )
        monkeypatch.setitem(sys.modules, "transformers", fake)
        return tmp_path
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    vocabulary = {token: number for number, token in enumerate(["</s>", *LETTERS])}
    letters = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    transformers.PreTrainedTokenizerFast(tokenizer_object=letters, eos_token="</s>").save_pretrained(tmp_path)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=0,
        initializer_range=0.5,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    return tmp_path


def test_a_local_model_compares_whole_names(folder):
    model = LocalModel(folder)
    prompt = "nnn Output: "[:-1]
    answer = model.answer(prompt, NAMES)
    runs = [model.tokenizer(prompt + continuation(name)).input_ids for name in NAMES]
    start = common_length([model.tokenizer(prompt).input_ids, *runs])
    expected = []
    for ids in runs:  # each from its beginning, without memory
        logits = model.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        expected.append(sum(logits[i - 1, ids[i]].item() for i in range(start, len(ids))))
    assert list(answer.scores.values()) == pytest.approx(expected, abs=1e-4)
    assert answer.choice == NAMES[max(range(3), key=expected.__getitem__)] and answer.prompt_tokens == start
    assert model.answer(prompt, NAMES) == answer


def test_a_local_model_writes_freely(folder):
    model = LocalModel(folder, answers="free")
    answer = model.answer("sky Output:", NAMES)
    assert answer.completion_tokens <= 16 and answer.choice == parse_choice(answer.text, NAMES)
    ids = torch.tensor([model.tokenizer("sky Output:").input_ids])
    first = int(model.model(ids).logits[0, -1].argmax())
    assert answer.text.startswith(model.tokenizer.decode(torch.tensor([first]), skip_special_tokens=True))


def test_prompts_that_are_too_long_are_refused(folder):
    for answers in ("free", "likelihood"):
        with pytest.raises(ValueError, match="does not fit the model's context of 64: give fewer words"):
            LocalModel(folder, answers=answers).answer("n" * 70, NAMES)


def test_local_models_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'sweettok\[llm\]'"):
        LocalModel(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(AutoModelForCausalLM=0, AutoTokenizer=0))
    with pytest.raises(FileNotFoundError, match="holds no config.json"):
        LocalModel(tmp_path)
    with pytest.raises(ValueError, match="must be likelihood or free; got 'schema'"):
        LocalModel(tmp_path, answers="schema")


def test_the_beginning_that_runs_share():
    assert common_length([[1, 2, 3], [1, 2, 4], [1, 2]]) == 2
    assert common_length([[1, 2], [3]]) == 0
