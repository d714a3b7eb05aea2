"""What was learned is there the next time, on the same machine and model only; never fatal."""

import json
import os

import pytest

from fakes import FakeDrafter, FakeTarget, SettledCosts, fake_pair
from paceline.engine import Engine
from paceline.sampling import SamplingParams
from paceline.speculative.controller import RoundCost
from paceline.speculative.costs import CostModel
from paceline.speculative.learned import (
    MAX_FILE_BYTES,
    Learned,
    LearnedFile,
    profiles_file,
    read_profiles,
    write_profiles,
)

KEY = {"processor": "one", "threads": 2}


def learned():
    found = Learned(CostModel({1: 0.05, 2: 0.06, 16: 0.2}, (0.001, 0.002)))
    for _ in range(20):
        found.costs.observe(
            RoundCost(
                num_sequences=1,
                num_rows=3,
                context_length=40,
                num_drafts=1,
                num_draft_steps=2,
                num_tokens=2,
                draft_s=0.005,
                verify_s=0.065,
                overhead_s=0.001,
            )
        )
    found.profiles.of("prose")
    return found


def same(one, other):
    """The costs to the bit; of acceptance, which is tested by itself, the kinds of text."""
    kinds = [list(found.profiles.to_dict()["profiles"]) for found in (one, other)]
    return one.costs.to_dict() == other.costs.to_dict() and kinds[0] == kinds[1]


def test_it_is_there_the_next_time(tmp_path):
    file = LearnedFile(tmp_path / "new", KEY)
    assert file.load() is None
    file.save(learned())
    again = LearnedFile(tmp_path / "new", KEY).load()
    assert same(again, learned())
    assert again.costs.curve(40).passes == learned().costs.curve(40).passes
    assert [path.name for path in file.path.parent.iterdir()] == [file.path.name]


@pytest.mark.parametrize("key", [{"processor": "two", "threads": 2}, {"threads": 2}, {}])
def test_another_machine_or_model_starts_anew(tmp_path, key):
    file, other = LearnedFile(tmp_path, KEY), LearnedFile(tmp_path, key)
    file.save(learned())
    assert other.load() is None
    other.path.write_bytes(file.path.read_bytes())  # a copy under the other's name
    assert other.load() is None


def without(name):
    def change(content):
        del content[name]

    return change


def with_value(*path, value):
    def change(content):
        for name in path[:-1]:
            content = content[name]
        content[path[-1]] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        *map(without, ("form", "key", "costs", "profiles")),
        with_value("form", value="another"),
        with_value("costs", value=[]),
        with_value("costs", "format", value=99),
        with_value("costs", "seed", value=[[1, -0.5]]),
        with_value("costs", "seed", value=[[1, 1e400]]),
        with_value("costs", "seed", value=[]),
        with_value("costs", "buckets", value=[{}]),
        with_value("costs", "draft", value="fast"),
        with_value("profiles", value={"format": 1}),
        with_value("profiles", "profiles", value={"prose": 3}),
    ],
)
def test_a_damaged_file_counts_as_none(tmp_path, change):
    file = LearnedFile(tmp_path, KEY)
    file.save(learned())
    content = json.loads(file.path.read_text())
    change(content)
    file.path.write_text(json.dumps(content))
    assert file.load() is None
    file.save(learned())
    assert file.load() is not None


def test_a_truncated_file_counts_as_none(tmp_path):
    file = LearnedFile(tmp_path, KEY)
    file.save(learned())
    whole = file.path.read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 3):
        file.path.write_bytes(whole[:length])
        assert file.load() is None
    for content in (b"\xff\xfe", b"[]", b"[" * 100_000, b" " * (MAX_FILE_BYTES + 1)):
        file.path.write_bytes(content)
        assert file.load() is None


def test_what_is_of_no_use_is_said_in_the_log(tmp_path, caplog):
    file = LearnedFile(tmp_path, KEY)
    assert file.load() is None
    assert not caplog.messages  # a first start is no damage
    file.path.write_text("{")
    assert file.load() is None
    assert file.path.name in caplog.messages[0]
    (tmp_path / "file").touch()
    LearnedFile(tmp_path / "file", KEY).save(learned())
    assert "cannot be kept" in caplog.messages[1]


def test_a_pipe_is_not_waited_for(tmp_path):
    file = LearnedFile(tmp_path, KEY)
    os.mkfifo(file.path)
    assert file.load() is None


def test_a_folder_that_cannot_be_used_is_no_error(tmp_path):
    (tmp_path / "file").touch()
    file = LearnedFile(tmp_path / "file", KEY)
    file.save(learned())
    assert file.load() is None
    blocked = LearnedFile(tmp_path, KEY)
    blocked.path.mkdir()
    blocked.save(learned())
    assert blocked.load() is None
    assert {path.name for path in tmp_path.iterdir()} == {"file", blocked.path.name}


# --- beside a drafter


def test_profiles_lie_in_the_folder_or_beside_the_file(tmp_path):
    assert profiles_file(tmp_path) == tmp_path / "acceptance.json"
    file = tmp_path / "some-assistant.gguf"
    assert profiles_file(file) == tmp_path / "some-assistant.acceptance.json"


def test_profiles_are_read_as_they_were_written(tmp_path, caplog):
    path = tmp_path / "acceptance.json"
    assert read_profiles(path) is None
    write_profiles(path, learned().profiles)
    assert read_profiles(path).to_dict() == learned().profiles.to_dict()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert not caplog.messages


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"[" * 100_000,
        b" " * (MAX_FILE_BYTES + 1),
        b'{"form": "another", "profiles": {"format": 1, "profiles": {}}}',
        b'{"form": "paceline draft acceptance 1", "profiles": {"format": 99, "profiles": {}}}',
        b'{"form": "paceline draft acceptance 1", "profiles": {"format": 1, "profiles": {"a": 1}}}',
    ],
)
def test_damaged_profiles_are_said_and_done_without(tmp_path, caplog, content):
    path = tmp_path / "acceptance.json"
    path.write_bytes(content)
    assert read_profiles(path) is None
    assert path.name in caplog.messages[0]


def test_profiles_that_cannot_be_written_leave_nothing_behind(tmp_path):
    (tmp_path / "acceptance.json").mkdir()
    with pytest.raises(IsADirectoryError):
        write_profiles(tmp_path / "acceptance.json", learned().profiles)
    assert [file.name for file in tmp_path.iterdir()] == ["acceptance.json"]


def test_an_engine_begins_with_what_lies_beside_its_drafter():
    engine = Engine.load(runtime="native")
    shipped = read_profiles(profiles_file(engine.pair.drafter_path))
    assert shipped.of("prose").counts[0] > 1000
    assert engine.learned.profiles.to_dict() == shipped.to_dict()
    engine.recalibrate()
    assert engine.learned.profiles.to_dict() == shipped.to_dict()


def test_an_engine_without_a_drafter_knows_nothing():
    engine = Engine.load(drafter=None, runtime="native")
    assert engine.pair.drafter_path is None
    assert engine.learned.profiles.to_dict()["profiles"] == {}


# --- the engine


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Loads a fake pair with a cache folder."""
    target = FakeTarget()
    pair = fake_pair(target, FakeDrafter(target))
    monkeypatch.setattr("paceline.loading.load_pair", lambda *args, **settings: pair)

    def load(**settings):
        return Engine.load("fake", cache_folder=tmp_path / "cache", **settings)

    return load


def test_a_model_is_measured_when_it_is_used_for_the_first_time(load):
    first = load()
    assert first.calibration is not None
    assert first.learned.costs.is_known
    first.generate("hello", sampling=SamplingParams(seed=1), max_tokens=40)
    first.keep_learned()
    second = load()
    assert second.calibration is None
    assert same(second.learned, first.learned)
    assert second.recalibrate() is not None
    assert not same(second.learned, first.learned)
    assert same(load().learned, second.learned)


def test_nothing_is_measured_or_kept_unless_asked_for(load, tmp_path):
    engine = load(learns=False)
    engine.generate("hello", max_tokens=10)
    engine.keep_learned()
    assert engine.calibration is None
    assert engine.pair.target.passes[0] != [32]
    assert not (tmp_path / "cache").exists()
    assert Engine.load("fake").calibration is None


def test_a_clock_that_stands_still_is_no_error(load, monkeypatch, tmp_path):
    monkeypatch.setattr("paceline.engine.calibrate", lambda *args: None)
    engine = load()
    assert engine.calibration is None
    assert engine.generate("hello", max_tokens=10).stats.generated_tokens == 10


def test_earlier_answers_are_kept_and_drafted_from(load):
    settings = {"sampling": SamplingParams(seed=1), "max_tokens": 60}
    first = load(remembers=True)
    expected = first.generate("hello", **settings)
    again = load(remembers=True)
    assert again.earlier.num_tokens == 60
    again.learned = Learned(SettledCosts({1: 1.0, 16: 1.5}, (0.1, 0.1)))
    again.pair.drafter.max_draft_tokens = 1  # or the drafter, which is always right, is better
    found = again.generate("hello", **settings)
    assert found.token_ids == expected.token_ids
    assert found.stats.sources["earlier"].accepted_tokens > 10
    assert load().earlier is None
