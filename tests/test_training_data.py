"""What training reads: documents and their sides, the vocabulary, streams, batches, clusters."""

from __future__ import annotations

import json
from collections import defaultdict

import numpy as np
import pytest

from paceline.chat import Message, render
from paceline.errors import CheckpointError, ConfigError
from paceline.tokenizer import Tokenizer
from paceline.training.clusters import balanced_clusters
from paceline.training.corpus import HELD_OUT_PER_CENT, Document, clean_worked_answer, read_corpus
from paceline.training.drafter import MIXTURE as DRAFTER_MIXTURE
from paceline.training.streams import (
    HELD_OUT,
    NOT_PREDICTED,
    TRAIN,
    Mixture,
    Stream,
    build_streams,
    document_ids,
    held_out_windows,
    load_streams,
    stream_name,
)
from paceline.training.target import ANSWERS, MIXTURE
from paceline.training.vocabulary import CONTROL_TOKENS, save_vocabulary, train_vocabulary
from small_tokenizer import SENTENCES, small_tokenizer
from training_texts import read_tiny_corpus, write_corpus


def document(text: str, prompt: str | None = None, key: str = "key") -> Document:
    return Document(kind="chat", key=key, text=text, prompt=prompt)


@pytest.fixture(scope="module")
def documents(tmp_path_factory) -> list[Document]:
    return read_tiny_corpus(write_corpus(tmp_path_factory.mktemp("corpus") / "texts"))


# Corpus


def test_about_five_per_cent_of_the_keys_are_held_out():
    held_out = sum(document("", key=f"book/tale/{number}").held_out for number in range(20_000))
    # four standard deviations of a binomial share: 4 * sqrt(0.05 * 0.95 / 20000) = 0.6 %
    assert held_out / 20_000 == pytest.approx(HELD_OUT_PER_CENT / 100, abs=0.0062)


def test_the_held_out_side_never_changes():
    """A model that was trained before must not be measured on what it has seen."""
    held_out = [number for number in range(200) if document("", key=f"key/{number}").held_out]
    assert held_out == [0, 10, 12, 29, 33, 83, 102, 133, 154, 181, 185, 191]


def test_a_key_is_on_one_side_only(documents):
    sides, counts = defaultdict(set), defaultdict(int)
    for one in documents:
        sides[one.key].add(one.held_out)
        counts[one.key] += 1
    assert max(counts.values()) > 1
    assert all(len(side) == 1 for side in sides.values())
    assert {one.kind for one in documents if one.held_out} == {
        "prose",
        "reference",
        "shell",
        "maths",
        "code",
    }


def test_the_documents_are_the_same_in_every_run(documents, tmp_path):
    assert read_tiny_corpus(write_corpus(tmp_path / "again")) == documents


def test_every_stream_of_the_mixtures_comes_from_the_corpus(documents):
    names = {stream_name(one) for one in documents if not one.held_out}
    assert names == set(MIXTURE)
    assert set(ANSWERS) == {name for name in names if name.endswith("-chat")}
    assert set(DRAFTER_MIXTURE) <= names


def test_questions_and_answers_are_made_as_described(documents):
    answers = {one.prompt: one.text for one in documents if one.prompt}
    story = next(prompt for prompt in answers if prompt.startswith("Continue this story:\n\n"))
    assert answers[story].count("\n\n") == 1
    pep = next(prompt for prompt in answers if prompt.startswith("What is PEP"))
    assert answers[pep].startswith('PEP 0 is titled "Of ')
    assert "\n" not in answers[pep].split("\n\n", 1)[1]
    commands = [text for text in answers.values() if text.endswith("\n```") and "```sh" in text]
    assert "List the old keys:\n\n```sh\nc0 --list {{path}}\n```" in commands
    assert "Take a small key:\n\n```sh\nc0 -k | wc -l\n```" in commands
    function = "Write a Python function `greet`: Return a friendly greeting for a name."
    assert answers[function] == (
        "```python\ndef greet(self, name):\n"
        '    """Return a friendly greeting for a name."""\n'
        '    return f"Hello, {name}"\n```'
    )
    assert not any("`long`" in prompt or "`undocumented`" in prompt for prompt in answers)
    assert not any("skipped" in one.key for one in documents)


def test_a_worked_answer_loses_its_calculator_marks():
    assert clean_worked_answer("2+3 = <<2+3=5>>5 eggs\n#### 5") == (
        "2+3 = 5 eggs\nThe answer is 5."
    )


def test_a_missing_corpus_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"books\.jsonl is missing: pass --corpus"):
        list(read_corpus(tmp_path))


# Vocabulary


def test_the_vocabulary_has_the_size_that_was_asked_for_and_gemmas_control_ids(tmp_path):
    vocabulary = train_vocabulary(SENTENCES, 600)
    assert vocabulary.get_vocab_size() == 600
    assert sorted(vocabulary.get_vocab().values()) == list(range(600))
    assert {i: vocabulary.id_to_token(i) for i in CONTROL_TOKENS} == CONTROL_TOKENS
    save_vocabulary(vocabulary, tmp_path / "new" / "tokenizer.json")
    control = Tokenizer.from_file(tmp_path / "new" / "tokenizer.json").control
    # reference section 6.2
    assert (control.pad, control.eos, control.bos) == (0, 1, 2)
    assert (control.turn_start, control.turn_end) == (105, 106)
    assert (control.channel_start, control.channel_end, control.think) == (100, 101, 98)
    assert (control.tool_call_start, control.tool_call_end) == (48, 49)
    assert control.string_quote == 52


def test_the_same_texts_give_the_same_vocabulary():
    """Also where more characters are equally rare than there is room for."""
    rare = "".join(chr(0x4E00 + number) for number in range(600))
    texts = [*SENTENCES, rare]
    first, second = (train_vocabulary(texts, 700).to_str() for _ in range(2))
    assert first == second
    assert "\u4e00" in first
    assert chr(0x4E00 + 599) not in first


def test_merges_do_not_join_words_or_lines():
    vocabulary = train_vocabulary(["one two\nthree four\n\n"] * 50, 389)
    learned = [vocabulary.id_to_token(i) for i in range(363, 389)]
    assert "▁two" in learned
    assert not any("▁" in token[1:] for token in learned)
    assert not any("\n" in token and token.strip("\n") for token in learned)


@pytest.mark.parametrize(
    ("vocab_size", "message"),
    [(5000, "yield only 623 tokens, not 5000: add text"), (300, "vocab_size=300 is too small")],
)
def test_a_size_that_the_texts_cannot_fill_is_an_error(vocab_size, message):
    with pytest.raises(ConfigError, match=message):
        train_vocabulary(SENTENCES, vocab_size)


# Streams


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("Why is the sky blue?", "The cat sat."),
        ("  \n How?\n\n", "\n\n  def add(a, b):\n\treturn a  \n"),
        ("\tmodel\nuser", "model\nmodel\n```\n\n\n```"),
        ("<eos><|turn>user\nme<turn|>", "<turn|><bos> <unk> <0x41> <pad>"),
        ("naïve ☃", "\U0001f600 e\u0301"),
    ],
)
def test_a_conversation_is_what_the_model_meets_in_use(prompt, answer):
    tokenizer = small_tokenizer()
    ids, answers = document_ids(document(answer, prompt), tokenizer)
    asked = render([Message("user", prompt)], tokenizer)
    assert ids[: len(asked)] == asked
    # with the next question: the answer as it stands in a conversation that goes on
    next_turn = [tokenizer.control.turn_start, *tokenizer.encode_text("model\n")]
    told = render([Message("user", prompt), Message("assistant", answer)], tokenizer)
    assert [*ids, *next_turn] == told
    # what the model has to write is the answer and the end of its turn, nothing before or after
    first, last = answers.index(True), len(answers) - 1 - answers[::-1].index(True)
    assert first == len(asked)
    assert all(answers[first : last + 1])
    assert ids[last] == tokenizer.control.turn_end
    assert tokenizer.decode(ids[first:last]) == answer.strip()


def test_plain_text_is_closed_and_never_a_control_token():
    tokenizer = small_tokenizer()
    text = " a <eos><|turn> b\n"
    ids, answers = document_ids(document(text), tokenizer)
    assert ids == [tokenizer.control.bos, *tokenizer.encode_text(text), tokenizer.control.eos]
    assert not tokenizer.control_ids & set(ids[1:-1])
    assert answers == [True] * len(ids)


def test_streams_hold_the_documents_in_order_and_sides_apart(documents, tmp_path):
    tokenizer = small_tokenizer()
    build_streams(documents, tokenizer, tmp_path)
    counts = json.loads((tmp_path / "streams.json").read_text())
    for part, held_out in ((TRAIN, False), (HELD_OUT, True)):
        expected = defaultdict(lambda: ([], []))
        for one in documents:
            if one.held_out == held_out:
                for whole, piece in zip(
                    expected[stream_name(one)], document_ids(one, tokenizer), strict=True
                ):
                    whole += piece
        streams = load_streams(tmp_path, part)
        assert streams.keys() == expected.keys()
        for name, stream in streams.items():
            assert (stream.tokens.tolist(), stream.answers.tolist()) == expected[name]
            assert counts[f"{part}.{name}"] == len(stream.tokens)


def test_missing_streams_are_an_error_that_says_what_to_run(tmp_path):
    with pytest.raises(CheckpointError, match=r"no train streams in .*training prepare"):
        load_streams(tmp_path, TRAIN)


def stream(length: int, start: int = 0) -> Stream:
    tokens = np.arange(start, start + length, dtype=np.uint16)
    return Stream(tokens, tokens % 3 == 0)


def test_a_batch_asks_for_the_next_token_of_the_answers():
    mixture = Mixture({"one": stream(50), "two": stream(80, 1000)}, {"one": 1.0, "two": 3.0})
    inputs, labels = mixture.batch(np.random.default_rng(0), 2000, 7, answers_only=False)
    assert inputs.shape == labels.shape == (2000, 7)
    assert (labels == inputs + 1).all()
    same, masked = mixture.batch(np.random.default_rng(0), 2000, 7, answers_only=True)
    assert (same == inputs).all()
    wanted = labels % 3 == 0
    assert (masked[wanted] == labels[wanted]).all()
    assert (masked[~wanted] == NOT_PREDICTED).all()
    # the whole of a stream is used: from its first token to its last
    first = inputs[inputs < 1000]
    assert (int(first.min()), int(labels[labels < 1000].max())) == (0, 49)


def test_a_mixture_keeps_its_shares_without_the_streams_that_are_not_there():
    mixture = Mixture({"one": stream(9), "two": stream(9, 1000)}, {"one": 1, "two": 3, "three": 6})
    inputs, _ = mixture.batch(np.random.default_rng(0), 2000, 4, answers_only=False)
    # four standard deviations: 4 * sqrt(0.75 * 0.25 / 2000) = 3.9 %
    assert float((inputs[:, 0] >= 1000).float().mean()) == pytest.approx(0.75, abs=0.039)
    with pytest.raises(CheckpointError, match="none of the streams three is there: got one"):
        Mixture({"one": stream(9)}, {"three": 1})


def test_a_stream_of_one_window_serves_and_a_shorter_one_is_named():
    inputs, labels = Mixture({"one": stream(8)}, {"one": 1}).batch(
        np.random.default_rng(0), 3, 7, answers_only=False
    )
    assert inputs.tolist() == [list(range(7))] * 3
    assert labels.tolist() == [list(range(1, 8))] * 3
    with pytest.raises(CheckpointError, match="the stream one has 7 tokens, but a window takes 8"):
        Mixture({"one": stream(7)}, {"one": 1}).batch(
            np.random.default_rng(0), 1, 7, answers_only=False
        )


@pytest.mark.parametrize(
    ("tokens", "limit", "windows"), [(10, 8, 3), (10, 2, 2), (9, 8, 2), (4, 8, 1), (3, 8, 0)]
)
def test_held_out_windows_predict_every_token_once(tokens, limit, windows):
    got = held_out_windows(stream(tokens), 3, limit)
    assert got.shape == (windows, 4)
    assert got[:, 1:].flatten().tolist() == list(range(1, 3 * windows + 1))


# Clusters


def clustered_table(clusters: int, size: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows around random centres in a random order, and the centre of each."""
    random = np.random.default_rng(0)
    owner = random.permutation(np.repeat(np.arange(clusters), size))
    centres = random.standard_normal((clusters, 24))
    rows = centres[owner] + noise * random.standard_normal((clusters * size, 24))
    return rows.astype(np.float32), owner


def spread(table: np.ndarray, ordering: np.ndarray, clusters: int) -> float:
    """Mean squared distance of the unit rows to the means of their clusters."""
    rows = table / np.linalg.norm(table, axis=1, keepdims=True)
    groups = rows[ordering].reshape(clusters, -1, rows.shape[1])
    return float(((groups - groups.mean(axis=1, keepdims=True)) ** 2).sum(axis=-1).mean())


def test_clusters_are_equal_complete_and_deterministic():
    table, _ = clustered_table(16, 8, noise=1.0)
    ordering = balanced_clusters(table, 16, seed=3)
    assert sorted(ordering.tolist()) == list(range(128))
    assert ordering.dtype == np.int64
    assert (ordering == balanced_clusters(table, 16, seed=3)).all()


def test_clusters_find_what_belongs_together():
    table, owner = clustered_table(16, 8, noise=0.3)
    by_chance = np.random.default_rng(1).permutation(128)
    found = spread(table, balanced_clusters(table, 16, seed=3), 16)
    ideal = spread(table, np.argsort(owner, kind="stable"), 16)
    chance = spread(table, by_chance, 16)
    # the first means alone stay at 0.16 of the way from the truth to chance, and above
    assert found < ideal + 0.1 * (chance - ideal)


def test_rows_that_are_all_alike_still_fill_every_cluster():
    ordering = balanced_clusters(np.zeros((12, 4), np.float32), 4, seed=0)
    assert sorted(ordering.tolist()) == list(range(12))
