"""Earlier answers are kept on request, bounded, deletable, and never fatal."""

import json
import stat

import pytest

from paceline.speculative.earlier import (
    FORM,
    MAX_FILE_BYTES,
    EarlierAnswers,
    answers_file,
    forget,
)
from paceline.speculative.suffix import SEPARATOR

VOCAB_SIZE = 1000


def kept(file, max_tokens=1000):
    return EarlierAnswers(file, VOCAB_SIZE, max_tokens)


def test_answers_are_there_the_next_time(tmp_path):
    file = tmp_path / "new" / "answers-1.json"
    answers = kept(file)
    answers.add([1, 2, 3])
    answers.add([])
    answers.add((4, 5))
    again = kept(file)
    assert list(again.text.tokens) == [1, 2, 3, SEPARATOR, 4, 5, SEPARATOR]
    assert again.text.tokens == answers.text.tokens
    assert again.num_tokens == answers.num_tokens == 5
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_the_oldest_are_forgotten(tmp_path):
    answers = kept(tmp_path / "answers-1.json", max_tokens=20)
    for first in range(0, 100, 7):
        answers.add(range(first, first + 7))
        assert answers.num_tokens <= 20
        assert len(answers.text.tokens) <= 20 + 20
    assert answers.text.tokens[-2] == 104
    answers.add(range(500))
    assert list(answers.text.tokens) == [*range(480, 500), SEPARATOR]
    assert kept(tmp_path / "answers-1.json", max_tokens=5).num_tokens == 5


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        json.dumps({"form": "another", "answers": [[1]]}).encode(),
        json.dumps({"form": FORM}).encode(),
        json.dumps({"form": FORM, "answers": {"a": 1}}).encode(),
        json.dumps({"form": FORM, "answers": [[1], []]}).encode(),
        json.dumps({"form": FORM, "answers": [[1], ["2"]]}).encode(),
        json.dumps({"form": FORM, "answers": [[1], [True]]}).encode(),
        json.dumps({"form": FORM, "answers": [[1], [VOCAB_SIZE]]}).encode(),
        json.dumps({"form": FORM, "answers": [[-1]]}).encode(),
        json.dumps({"form": FORM, "answers": [[1]]}).encode()[:-2],
        b" " * (MAX_FILE_BYTES + 1),
    ],
    ids=range(15),
)
def test_a_damaged_file_counts_as_none_and_is_replaced(tmp_path, content):
    file = tmp_path / "answers-1.json"
    file.write_bytes(content)
    answers = kept(file)
    assert answers.num_tokens == 0
    answers.add([7])
    assert kept(file).num_tokens == 1


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "file").touch()
    answers = kept(tmp_path / "file" / "answers-1.json")
    answers.add([1, 2])
    assert answers.num_tokens == 2
    (tmp_path / "answers-2.json").mkdir()
    kept(tmp_path / "answers-2.json").add([1])


def test_without_a_file_they_last_as_long_as_the_process():
    answers = kept(None)
    answers.add([1, 2])
    assert answers.num_tokens == 2


def test_each_vocabulary_has_its_file(tmp_path):
    files = {answers_file(tmp_path, texts) for texts in ([b"a", b"bc"], [b"ab", b"c"], [b"a"])}
    assert len(files) == 3
    assert answers_file(tmp_path, [b"a"]) in files


def test_all_of_them_can_be_forgotten(tmp_path):
    for name in (b"a", b"b"):
        kept(answers_file(tmp_path, [name])).add([1])
    (tmp_path / "costs.json").touch()
    assert forget(tmp_path) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["costs.json"]
    assert forget(tmp_path / "missing") == 0
