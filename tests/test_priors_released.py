"""The released pickles: the release's rules, and that nothing in a pickle is ever run."""

import collections
import copyreg
import io
import os
import pickle
import pickletools

import numpy as np
import pytest
import torch

from sweettok.cli.main import main
from sweettok.priors import Prior, WordGraph, load_prior, save_prior
from sweettok.priors.released import RELEASED_NAMES, load_released, read_pickle, save_released


def vector(i, shape=(1, 1, 3)):
    return torch.full(shape, float(i))


def spatial():
    return {
        "adj_code_book_num": {"red": 11, "rare": 10, "big": 300},
        "noun_code_book_num": {"car": 40, "rare": 99, "red": 50, "few": 3, "dog": 12},
        "adj_code_book_vec": {"big": vector(2), "red": vector(1), "rare": vector(9)},
        "noun_code_book_vec": {
            "car": vector(3),
            "dog": vector(4),
            "rare": vector(9),
            "red": vector(9),
            "few": vector(9),
        },
        "adj_noun_edges": [
            ("red", "car"),
            ("big", "dog"),
            ("red", "car"),
            ("rare", "car"),
            ("big", "few"),
            ("red", "red"),
            ("x", "car"),
        ],
    }


def temporal():
    return {
        "adverb_code_book_num": {"fast": 1, "slowly": 2},
        "verb_code_book_num": {"run": 1, "fast": 1},
        "adverb_vec": {"fast": vector(5, (3,)), "slowly": vector(6, (3,))},
        "verb_vec": {"run": vector(7, (3,)), "fast": vector(8, (3,))},
        "verb_adverb_edges": [("run", "fast"), ("run", "slowly")],
    }


def write(folder, first=None, second=None, names=0, protocol=None):
    folder.mkdir(exist_ok=True)
    for side, content in (("spatial", first or spatial()), ("temporal", second or temporal())):
        with open(folder / RELEASED_NAMES[side][names], "wb") as file:
            pickle.dump(content, file, protocol)
    return folder


def check_rules(prior):
    assert prior.spatial.modifiers == ("red", "big")
    assert prior.spatial.heads == ("car", "dog")
    assert prior.spatial.vectors[:, 0].tolist() == [1, 2, 3, 4] and prior.spatial.dim == 3
    assert prior.spatial.edges.T.tolist() == [[0, 2], [1, 3], [0, 2], [0, 0]]
    assert prior.spatial.counts.tolist() == [11, 300, 40, 12]
    assert prior.temporal.words == ("fast", "slowly", "run", "fast")
    assert prior.temporal.vectors[:, 0].tolist() == [5, 6, 7, 8]
    assert prior.temporal.edges.T.tolist() == [[2, 3], [2, 1]]  # "fast" means the verb


@pytest.mark.parametrize("names", [0, 1])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_rules(tmp_path, names, protocol):
    check_rules(load_prior(write(tmp_path, names=names, protocol=protocol)))


def as_numpy(table):
    return {word: value.numpy() for word, value in table.items()}


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_arrays_counters_halves_and_parameters_are_read(tmp_path, protocol):
    first, second = spatial(), temporal()
    first["adj_code_book_num"] = collections.Counter(first["adj_code_book_num"])
    first["noun_code_book_num"] = collections.OrderedDict(
        (word, np.int64(count)) for word, count in first["noun_code_book_num"].items()
    )
    first["adj_code_book_vec"] = as_numpy(first["adj_code_book_vec"])
    first["noun_code_book_vec"] = {word: torch.nn.Parameter(v) for word, v in first["noun_code_book_vec"].items()}
    second["adverb_vec"] = {word: v.bfloat16() for word, v in second["adverb_vec"].items()}
    second["verb_vec"] = collections.defaultdict(list, {w: v.double() for w, v in second["verb_vec"].items()})
    check_rules(load_prior(write(tmp_path, first, second, protocol=protocol)))


def test_array_values_survive(tmp_path):
    arrays = [np.arange(6.0).reshape(2, 3), np.asfortranarray(np.arange(6, dtype=">i4").reshape(2, 3)), np.float32(2.5)]
    views = [torch.arange(12.0).reshape(3, 4)[1:, ::2], torch.tensor([1, 2])]
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps([*arrays, *views]))
    *got, number, view, whole = read_pickle(path)
    for want, array in zip(arrays[:2], got, strict=True):
        np.testing.assert_array_equal(array.tensor().numpy(), want)
    assert number == 2.5 and torch.equal(view, views[0]) and torch.equal(whole, views[1])


def test_numpy_1_names_are_read(tmp_path):
    path = tmp_path / "x.pkl"
    data = pickle.dumps(np.arange(3.0), protocol=2)
    path.write_bytes(data.replace(b"numpy._core", b"numpy.core"))
    assert read_pickle(path).tensor().tolist() == [0, 1, 2]


class Reduce:
    def __init__(self, function, *args, state=None):
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.reduced


class WithPersistentId(pickle.Pickler):
    def persistent_id(self, value):
        return ("os", "system") if value == "outside" else None


def referring():
    buffer = io.BytesIO()
    WithPersistentId(buffer).dump({"adj_code_book_num": "outside"})
    return buffer.getvalue()


def nested(payload):
    """A tensor whose numbers are a pickle of their own."""
    load = torch.storage._load_from_bytes
    return pickle.dumps(Reduce(torch._utils._rebuild_tensor_v2, Reduce(load, payload), 0, (1,), (1,), False, {}))


def attacks(marker):
    command = f"touch {marker}"
    system = pickle.dumps(Reduce(os.system, command))
    legacy = io.BytesIO()
    torch.save({"x": Reduce(os.system, command)}, legacy, _use_new_zipfile_serialization=False)
    zipped = io.BytesIO()
    torch.save({"x": Reduce(os.system, command)}, zipped)
    text = f"open({str(marker)!r}, 'w')"
    return {
        "system": (system, "posix.system|nt.system"),
        "old protocol": (b"cos\nsystem\n(S'" + command.encode() + b"'\ntR.", "os.system"),
        "eval": (pickle.dumps(Reduce(eval, text)), "builtins.eval"),
        "exec": (pickle.dumps({"adj_code_book_num": [Reduce(exec, text)]}), "builtins.exec"),
        "getattr": (pickle.dumps(Reduce(getattr, "", "join")), "builtins.getattr"),
        "import": (pickle.dumps(Reduce(__import__, "antigravity")), "builtins.__import__"),
        "copyreg": (pickle.dumps(Reduce(copyreg.add_extension, "os", "system", 200)), "copyreg.add_extension"),
        "reconstructor": (pickle.dumps(Reduce(copyreg._reconstructor, object, object, None)), "_reconstructor"),
        "dotted name": (b"\x80\x04\x8c\x0bcollections\x8c\x10abc.sys.settrace\x93.", "collections.abc.sys.settrace"),
        "instance": (b"(S'" + command.encode() + b"'\nios\nsystem\n.", "os.system"),
        "reference": (referring(), "outside the file"),
        "real tensor loader": (pickle.dumps(Reduce(torch.load, str(marker))), "torch.serialization.load"),
        "nested pickle": (nested(system), "x.pkl"),
        "nested torch file": (nested(legacy.getvalue()), "x.pkl"),
        "nested zip": (nested(zipped.getvalue()), "x.pkl"),
        "object array": (pickle.dumps(np.array([Reduce(os.system, command)], dtype=object)), "type 'O8'|posix.system"),
        "structured array": (pickle.dumps(np.zeros(1, dtype=[("a", "O")])), "numpy array of type|structured"),
        "truncated": (system[:20], "x.pkl"),
        "empty": (b"", "x.pkl"),
        "no pickle": (b"not a pickle", "x.pkl"),
    }


ATTACKS = sorted(attacks("marker"))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", ATTACKS)
def test_attack_does_nothing(tmp_path, name):
    marker = tmp_path / "marker"
    data, message = attacks(marker)[name]
    path = tmp_path / "x.pkl"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        read_pickle(path)
    assert "x.pkl" in str(caught.value)
    assert not marker.exists()


@pytest.mark.parametrize("target", ["torch._utils\n_rebuild_tensor_v2", "collections\nOrderedDict", "numpy\ndtype"])
@pytest.mark.parametrize("state", [b"}S'__call__'\nNs", b"N}S'__call__'\nNs\x86"])
def test_attributes_of_what_is_handed_out_cannot_be_set(tmp_path, target, state):
    """BUILD sets attributes on the object below it; none that the reader hands out may change that way."""
    path = tmp_path / "x.pkl"
    path.write_bytes(b"\x80\x02c" + target.encode() + b"\n" + state + b"b.")
    with pytest.raises(ValueError, match="x.pkl"):
        read_pickle(path)
    check_rules(load_prior(write(tmp_path / "after")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("adj_noun_edges"), "expected a dict with the keys adj_code_book_num"),
        (lambda d: d["noun_code_book_vec"].pop("dog"), "no vector for the word 'dog'"),
        (lambda d: d["noun_code_book_vec"].update(dog=torch.zeros(2, 2)), "no 1-D vector"),
        (lambda d: d["noun_code_book_vec"].update(dog=torch.zeros(2)), r"different widths \[2, 3\]"),
        (lambda d: d["adj_code_book_num"].update(big="many"), "'many'"),
        (lambda d: d["adj_code_book_num"].update(big=float("inf")), "infinity"),
        (lambda d: d.update(adj_code_book_num=["big"]), "unexpected content"),
        (lambda d: d.update(adj_noun_edges=["red"]), "unexpected content"),
        (lambda d: d.update(adj_noun_edges=7), "unexpected content"),
        (lambda d: d.update(noun_code_book_num={"few": 1}), "heads must be a non-empty tuple"),
    ],
)
def test_wrong_content_is_named(tmp_path, change, message):
    content = spatial()
    change(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_prior(write(tmp_path, content))
    assert "mlc_codebook_noun_adj.pkl" in str(caught.value)


def test_missing_file_is_named(tmp_path):
    write(tmp_path)
    (tmp_path / RELEASED_NAMES["temporal"][0]).unlink()
    with pytest.raises(FileNotFoundError, match="mlc_codebook_verb_adv.pkl"):
        load_released(tmp_path)
    with pytest.raises(FileNotFoundError, match="found: mlc_codebook_noun_adj.pkl"):
        load_prior(tmp_path)


def test_native_wins_and_says_so(tmp_path, caplog):
    prior = load_released(write(tmp_path))
    save_prior(prior, tmp_path)
    (tmp_path / RELEASED_NAMES["spatial"][0]).write_bytes(b"broken, and not looked at")
    check_rules(load_prior(tmp_path))
    assert "reading spatial.safetensors" in caplog.text


def test_convert(tmp_path, capsys):
    write(tmp_path / "released")
    assert main(["priors", "convert", str(tmp_path / "released"), str(tmp_path / "native")]) == 0
    assert "spatial: 2 adjectives + 2 nouns, vectors of 3, 4 edges" in capsys.readouterr().out
    check_rules(load_prior(tmp_path / "native"))


def test_full_size_priors(golden_priors, golden_prior):
    rule, space, time = golden_priors, golden_prior.spatial, golden_prior.temporal
    assert (space.num_modifiers, space.num_heads, time.num_modifiers, time.num_heads) == (5078, 5403, 1872, 9267)
    made = rule.spatial()
    assert space.modifiers == tuple(rule.words("adj", 5078)) and space.heads == tuple(rule.words("noun", 5403))
    for word in ("adj0", "adj5077", "noun0", "noun5402"):
        table = made["adj_code_book_vec"] if word in made["adj_code_book_vec"] else made["noun_code_book_vec"]
        assert torch.equal(space.vectors[space.words.index(word)], table[word].flatten())
    assert space.edges.shape == (2, 5078 * 12 + 1 + 10)  # the self edge, and ten duplicates
    assert time.edges.shape == (2, 9265 * 8 + 2)
    assert time.heads[:2] == time.modifiers[:2] == ("adv0", "adv1")
    assert not torch.equal(time.vectors[0], time.vectors[1872])
    assert time.edges[:, -2].tolist() == [1872, 9]  # the edge from "adv0" is the verb's


# ----------------------------------------------------------------------------------------------------------- writing


def equal(prior, other):
    for side in ("spatial", "temporal"):
        one, two = getattr(prior, side), getattr(other, side)
        assert one.words == two.words and torch.equal(one.vectors, two.vectors)
        assert torch.equal(one.edges, two.edges) and torch.equal(one.counts, two.counts)


def test_released_files_come_back(tmp_path):
    prior = load_released(write(tmp_path / "released"))
    assert save_released(prior, tmp_path / "again") == 0
    equal(load_released(tmp_path / "again"), prior)
    save_prior(prior, tmp_path / "native")
    assert main(["priors", "convert", str(tmp_path / "native"), str(tmp_path / "third"), "--to", "released"]) == 0
    equal(load_released(tmp_path / "third"), prior)


class OnlyTensors(pickle.Unpickler):
    """Reads files that call nothing but what puts tensors together."""

    CALLED = {
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch.storage", "_load_from_bytes"),
        ("collections", "OrderedDict"),
    }

    def find_class(self, module, name):
        assert (module, name) in self.CALLED
        return super().find_class(module, name)


def test_written_files_hold_plain_data(tmp_path):
    save_released(load_released(write(tmp_path / "released")), tmp_path)
    called = set()
    for names in RELEASED_NAMES.values():
        data = (tmp_path / names[0]).read_bytes()
        texts = [argument for opcode, argument, _ in pickletools.genops(data) if "UNICODE" in opcode.name]
        opcodes = {opcode.name for opcode, _, _ in pickletools.genops(data)}
        assert not opcodes & {"GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD", "EXT1", "PERSID", "BINPERSID"}
        called |= {text for text in texts if text.split(".")[0] in ("torch", "collections", "builtins", "os", "posix")}
        assert len(data) < 10_000  # no vector drags the whole table along
    assert called == {"torch._utils", "torch.storage", "collections"}
    with open(tmp_path / RELEASED_NAMES["spatial"][0], "rb") as file:
        content = OnlyTensors(file).load()  # what the published code does, but for what it would run besides
    assert content["adj_code_book_num"] == {"red": 11, "big": 300}
    assert torch.equal(content["noun_code_book_vec"]["dog"], torch.full((3,), 4.0))
    assert content["adj_noun_edges"] == [("red", "car"), ("big", "dog"), ("red", "car"), ("red", "red")]


def word_graph(modifiers, heads, edges, counts):
    vectors = torch.arange(2.0 * len(modifiers + heads)).reshape(-1, 2)
    return WordGraph(modifiers, heads, vectors, torch.tensor(edges).T.contiguous(), counts and torch.tensor(counts))


TIME = word_graph(("fast", "on"), ("go", "fast"), [[0, 2], [1, 2], [0, 3]], [3, 2, 1, 1])


def test_what_released_files_cannot_hold(tmp_path, capsys):
    both = word_graph(("red",), ("red", "car"), [[0, 2]], [20, 20, 20])
    with pytest.raises(ValueError, match="cannot hold nouns that are adjectives too: red"):
        save_released(Prior(both, TIME), tmp_path)
    rare = Prior(word_graph(("red", "big"), ("car",), [[0, 2]], [11, 10, 3]), TIME)
    with pytest.raises(ValueError, match="2 adjectives and nouns have no count above 10.*--raise-counts"):
        save_released(rare, tmp_path)
    unknown = Prior(word_graph(("red", "big"), ("car",), [[0, 2]], None), TIME)
    with pytest.raises(ValueError, match="3 adjectives and nouns"):
        save_released(unknown, tmp_path)
    assert not list(tmp_path.iterdir())
    save_prior(rare, tmp_path / "native")
    arguments = ["priors", "convert", str(tmp_path / "native"), str(tmp_path / "released")]
    assert main([*arguments, "--to", "released", "--raise-counts"]) == 0
    assert "2 edges to adverbs that are also verbs became edges to the verbs" in capsys.readouterr().out
    prior = load_released(tmp_path / "released")
    assert prior.spatial.words == ("red", "big", "car") and prior.spatial.counts.tolist() == [11, 11, 11]
    assert prior.temporal.counts.tolist() == [3, 2, 1, 1]
    assert prior.temporal.edges.T.tolist() == [[3, 2], [1, 2], [3, 3]]
    assert main([*arguments, "--raise-counts"]) == 2
    assert "--raise-counts has no effect without --to released" in capsys.readouterr().err
