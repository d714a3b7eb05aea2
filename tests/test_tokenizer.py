"""Text becomes text tokens only, comes back unchanged, and damaged files are refused by name."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline import tokenizer as module
from paceline.errors import CheckpointError, PromptError
from paceline.tokenizer import CONTROL_TEXTS, Tokenizer, TokenWriter
from small_tokenizer import SENTENCES, reference_encode, small_document, small_tokenizer

CONTROL_LITERALS = [*CONTROL_TEXTS.values(), "<unk>", "<mask>", "<unused7>"]
HOSTILE_PARTS = [
    *CONTROL_LITERALS,
    "<|",
    "|>",
    "<",
    "turn",
    "<0x41>",
    "<0xE2>",
    " ",
    "\n",
    "é",
    "☃",
]

hostile_texts = st.lists(
    st.sampled_from(HOSTILE_PARTS) | st.text(st.characters(codec="utf-8"), max_size=4), max_size=12
).map("".join)


@settings(derandomize=True, deadline=None)
@given(hostile_texts)
def test_text_never_becomes_a_control_token_and_comes_back(text):
    tokenizer = small_tokenizer()
    ids = tokenizer.encode_text(text)
    assert tokenizer.control_ids.isdisjoint(ids)
    assert tokenizer.decode(ids) == text.replace("▁", " ")


def test_the_library_itself_would_open_a_turn():
    assert small_tokenizer().control.turn_start in reference_encode("<|turn>")


@pytest.mark.parametrize("text", [*SENTENCES, "", " ", "  two  ", "日本語 \U0001f600", "a\x00b"])
def test_plain_text_has_the_ids_that_the_library_gives(text):
    assert small_tokenizer().encode_text(text) == reference_encode(text)


@pytest.mark.parametrize("text", ["a\ud800", "\udfff", "<|turn>\ud83d x"])
def test_a_lone_surrogate_is_refused(text):
    with pytest.raises(PromptError, match="lone surrogate U\\+D"):
        small_tokenizer().encode_text(text)


def test_control_ids_are_taken_by_name():
    control = small_tokenizer().control
    got = {name: getattr(control, name) for name in CONTROL_TEXTS}
    assert got == {name: reference_encode(text)[0] for name, text in CONTROL_TEXTS.items()}
    assert (control.pad, control.eos, control.bos) == (0, 1, 2)
    assert (control.turn_start, control.turn_end) == (105, 106)


def test_bytes_of_tokens():
    tokenizer = small_tokenizer()
    [snow, *_], vocab = tokenizer.encode_text("☃"), small_document()["model"]["vocab"]
    assert tokenizer.token_bytes(snow) == b"\xe2"
    assert tokenizer.token_bytes(vocab["<0x00>"]) == b"\x00"
    assert tokenizer.token_bytes(vocab["▁the"]) == b" the"
    assert {tokenizer.token_bytes(i) for i in tokenizer.control_ids} == {b""}
    assert tokenizer.token_text(105) == "<|turn>"
    past_the_end = tokenizer.vocab_size
    assert (tokenizer.token_bytes(past_the_end), tokenizer.token_text(past_the_end)) == (b"", "")


@settings(derandomize=True, deadline=None)
@given(st.lists(st.integers(0, small_tokenizer().vocab_size - 1), max_size=30))
def test_decode_is_the_bytes_of_the_tokens(ids):
    tokenizer = small_tokenizer()
    data = b"".join(map(tokenizer.token_bytes, ids))
    assert tokenizer.decode(ids) == data.decode(errors="replace")


def test_gemmas_own_form_with_its_pre_tokenizer_and_ordinary_added_tokens():
    """Runs of newlines and HTML tags are added tokens there, and stay reachable by text."""
    document = small_document()
    size = len(document["model"]["vocab"])
    document["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"String": " "},
        "behavior": "MergedWithPrevious",
        "invert": False,
    }
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    table, image = size, size + 1
    document["added_tokens"] += [
        {"id": table, "content": "<table>", "special": False, **plain},
        {"id": image, "content": "<|image|>", "special": False, **plain},
    ]
    document["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<bos>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}},
    }
    tokenizer = Tokenizer(document)
    text = "a <table> \n\n<|image|> the <bos> end"
    ids = tokenizer.encode_text(text)
    assert tokenizer.decode(ids) == text
    assert table in ids
    assert image in tokenizer.control_ids
    assert tokenizer.control_ids.isdisjoint(ids)
    judge = tokenizers.Tokenizer.from_str(json.dumps(document))
    harmless = "a <table> \n\nthe cat  sat"
    assert tokenizer.encode_text(harmless) == judge.encode(harmless, add_special_tokens=False).ids


def test_merges_that_would_build_a_control_or_byte_token_are_left_out():
    document = small_document()
    model = document["model"]
    next_id = len(model["vocab"])
    for text in ("<|t", "urn>", "<0", "x41>", "x41"):
        next_id += model["vocab"].setdefault(text, next_id) == next_id
    chains = [("<", "|"), ("<|", "t"), ("<|t", "urn>"), ("u", "rn"), ("urn", ">")]
    chains += [("<", "0"), ("4", "1"), ("x", "41"), ("x41", ">"), ("<0", "x41>")]
    for text in ("<|", "rn", "urn", "41", "x", "4", "1"):
        next_id += model["vocab"].setdefault(text, next_id) == next_id
    model["merges"] = [["r", "n"], *map(list, chains)]
    judge = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab=model["vocab"], merges=[tuple(m) for m in model["merges"]], byte_fallback=True
        )
    )
    assert judge.encode("<|turn>").ids == [105]  # the merges alone reach the control token
    assert judge.encode("<0x41>").ids == [model["vocab"]["<0x41>"]]
    tokenizer = Tokenizer(document)
    for text in ("<|turn>", "<0x41>"):
        ids = tokenizer.encode_text(text)
        assert tokenizer.decode(ids) == text
        assert 105 not in ids


def test_a_control_token_of_one_character_is_out_of_reach():
    """No merge builds it: only its absence from the encoder's vocabulary keeps it away."""
    document = small_document()
    section = max(document["model"]["vocab"].values()) + 1
    document["model"]["vocab"]["§"] = section
    document["added_tokens"].append({**document["added_tokens"][0], "id": section, "content": "§"})
    tokenizer = Tokenizer(document)
    ids = tokenizer.encode_text("a § b")
    assert section in tokenizer.control_ids
    assert section not in ids
    assert tokenizer.decode(ids) == "a § b"


def test_merges_written_as_text_are_read_too():
    document = small_document()
    document["model"]["merges"] = [" ".join(merge) for merge in document["model"]["merges"]]
    text = SENTENCES[2]
    assert Tokenizer(document).encode_text(text) == small_tokenizer().encode_text(text)


def test_optional_control_tokens_may_be_missing():
    document = small_document()
    for text in ("<|think|>", "<|tool>"):
        del document["model"]["vocab"][text]
    document["added_tokens"] = [
        token for token in document["added_tokens"] if token["id"] not in (98, 46)
    ]
    tokenizer = Tokenizer(document)
    assert (tokenizer.control.think, tokenizer.control.tool_start) == (None, None)
    assert tokenizer.decode(tokenizer.encode_text("<|think|>")) == "<|think|>"
    with pytest.raises(PromptError, match=r"no <\|think\|> token"):
        TokenWriter(tokenizer).control("think")


def test_threads_share_a_tokenizer():
    tokenizer = small_tokenizer()
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(tokenizer.encode_text, SENTENCES * 20))
    assert got == [tokenizer.encode_text(text) for text in SENTENCES * 20]


def test_a_writer_encodes_text_between_control_tokens_in_one_piece():
    tokenizer = small_tokenizer()
    writer = TokenWriter(tokenizer)
    writer.control("turn_start")
    for part in ("us", "er", "\n", "", "<|turn>"):
        writer.text(part)
    writer.control("turn_end")
    expected = [105, *tokenizer.encode_text("user\n<|turn>"), 106]
    assert writer.token_ids() == expected
    writer.text("\n")
    assert writer.token_ids() == expected + tokenizer.encode_text("\n")


def damaged(change):
    document = small_document()
    change(document, document["model"])
    return document


def drop_token(document, text):
    document["model"]["vocab"].pop(text)
    document["added_tokens"] = [t for t in document["added_tokens"] if t["content"] != text]
    document["model"]["merges"] = [m for m in document["model"]["merges"] if "".join(m) != text]


DAMAGES = {
    "no model": (lambda d, m: d.pop("model"), "only BPE"),
    "model is text": (lambda d, m: d.update(model="BPE"), "only BPE"),
    "another kind": (lambda d, m: m.update(type="Unigram"), "'Unigram'"),
    "no byte fallback": (lambda d, m: m.update(byte_fallback=False), "byte_fallback"),
    "whole words first": (lambda d, m: m.update(ignore_merges=True), "ignore_merges"),
    "random merges": (lambda d, m: m.update(dropout=0.1), "dropout"),
    "prefixes": (lambda d, m: m.update(continuing_subword_prefix="##"), "subword_prefix"),
    "no vocabulary": (lambda d, m: m.pop("vocab"), "model.vocab is missing"),
    "vocabulary is a list": (lambda d, m: m.update(vocab=[]), "model.vocab is missing"),
    "empty vocabulary": (lambda d, m: m.update(vocab={}), "byte tokens are missing"),
    "id is text": (lambda d, m: m["vocab"].update(z="7"), "token 'z' has the id '7'"),
    "id is a bool": (lambda d, m: m["vocab"].update(z=True), "has the id True"),
    "id is negative": (lambda d, m: m["vocab"].update(z=-1), "has the id -1"),
    "id is huge": (lambda d, m: m["vocab"].update(z=1 << 40), "expected 0 to"),
    "id is shared": (lambda d, m: m["vocab"].update(zebra=300), "share one id"),
    "byte token missing": (lambda d, m: m["vocab"].pop("<0x7F>"), "<0x7F>"),
    "bos missing": (lambda d, m: drop_token(d, "<bos>"), "<bos> are missing"),
    "turn missing": (lambda d, m: drop_token(d, "<|turn>"), r"<\|turn> are missing"),
    "added tokens are text": (lambda d, m: d.update(added_tokens="x"), "added_tokens"),
    "added token has no text": (lambda d, m: d["added_tokens"].append({"id": 9}), "added_tokens"),
    "added token moved": (lambda d, m: d["added_tokens"][2].update(id=9), "'<bos>' has two ids"),
    "no merges": (lambda d, m: m.pop("merges"), "model.merges is missing"),
    "merge of three": (lambda d, m: m["merges"].append(["a", "b", "c"]), "damaged"),
    "merge of numbers": (lambda d, m: m["merges"].append([1, 2]), "damaged"),
    "merge of text without space": (lambda d, m: m["merges"].append("ab"), "damaged"),
    "merge of unknown tokens": (lambda d, m: m["merges"].append(["qq", "zz"]), "refuses"),
    "unknown normalizer": (lambda d, m: d.update(normalizer={"type": "Magic"}), "refuses"),
    "lower case": (lambda d, m: d.update(normalizer={"type": "Lowercase"}), "survive"),
    "composed accents": (lambda d, m: d.update(normalizer={"type": "NFC"}), "survive"),
    "spaces dropped": (lambda d, m: d.update(pre_tokenizer={"type": "Whitespace"}), "survive"),
    "token is no Unicode": (lambda d, m: m["vocab"].update({"\ud800": 699}), "not valid Unicode"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_document_is_refused_by_name(name, tmp_path):
    change, message = DAMAGES[name]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(damaged(change)))
    with pytest.raises(CheckpointError, match=message) as caught:
        Tokenizer.from_file(path)
    assert str(path) in str(caught.value)


BAD_FILES = {
    "empty": (b"", "not valid JSON"),
    "not JSON": (b"{model:", "not valid JSON"),
    "cut off": (json.dumps(small_document()).encode()[:-40], "not valid JSON"),
    "not UTF-8": (b'{"a": "\xff"}', "not valid JSON"),
    "too deep": (b"[" * 200_000, "not valid JSON"),
    "a list": (b"[]", "expected a JSON object, got a list"),
    "an empty object": (b"{}", "only BPE"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_damaged_file_is_refused_by_name(name, tmp_path):
    data, message = BAD_FILES[name]
    path = tmp_path / "tokenizer.json"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        Tokenizer.from_file(path)


def test_a_missing_file_a_folder_and_a_huge_file_are_refused(tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match="No such file"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")
    with pytest.raises(CheckpointError, match="Is a directory"):
        Tokenizer.from_file(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(small_document()))
    assert Tokenizer.from_file(path).vocab_size == small_tokenizer().vocab_size
    monkeypatch.setattr(module, "MAX_FILE_BYTES", path.stat().st_size - 1)
    with pytest.raises(CheckpointError, match="larger than"):
        Tokenizer.from_file(path)
