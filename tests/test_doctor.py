"""`paceline doctor`: what it finds, what it makes of faults, and its exit status."""

from __future__ import annotations

import json
import shutil
import sys
from types import SimpleNamespace

import pytest

from cli_fakes import CommandLine
from gguf_pair import files, source
from paceline import cpu, diagnosis, extension, memory
from paceline.cli import environment
from paceline.errors import CheckpointError

MACHINE = ["processor", "threads", "instructions", "read speed", "memory", "disk", "versions"]
MODEL = ["model", "weights", "tokenizer", "drafter", "needs"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(diagnosis, "READ_BYTES", 1 << 20)
    monkeypatch.delenv("PACELINE_ISA", raising=False)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(monkeypatch, capsys)


@pytest.fixture
def pair(tmp_path):
    """A target's file with its drafter beside it, to damage."""
    for file, name in zip(files("Q8_0"), ("m.gguf", "m-assistant.gguf"), strict=True):
        shutil.copy(file, tmp_path / name)
    return tmp_path / "m.gguf"


def checks_of(model, drafter="auto"):
    return {check.name: check for check in diagnosis.check_model(model, drafter)}


def problems(checks):
    return [check.name for check in checks.values() if check.status == "problem"]


def test_a_sound_machine_and_the_shipped_pair(cli):
    outcome = cli.run("doctor")
    assert (outcome.code, outcome.stderr) == (0, "")
    lines = [line.split("  ", 1) for line in outcome.stdout.splitlines()]
    assert [
        next(x for x in MACHINE + MODEL if rest.strip().startswith(x)) for _, rest in lines
    ] == (MACHINE + MODEL)
    assert all(status.strip() in ("ok", "note") for status, _ in lines)


def test_the_document(cli, pair):
    outcome = cli.run("doctor", str(pair), "--json")
    assert outcome.code == 0
    report = json.loads(outcome.stdout)
    assert list(report) == MACHINE + MODEL
    assert report["instructions"]["in_use"] == report["instructions"]["available"][-1]
    assert report["threads"]["default"] == cpu.default_threads()
    assert report["read speed"]["bytes_per_s"] > 0
    assert report["memory"]["total_bytes"] >= report["memory"]["free_bytes"] > 0
    assert report["versions"]["paceline"]


@pytest.mark.parametrize("dtype", ["Q4_0", "BF16"])
def test_a_sound_pair(dtype):
    checks = checks_of(files(dtype)[0])
    assert list(checks) == MODEL
    assert not problems(checks)
    assert dtype in checks["weights"].text
    assert "made for this model" in checks["drafter"].text
    assert checks_of(source().target.path).keys() == checks.keys()


def test_faults_are_reported_and_make_the_status_1(cli, tmp_path):
    outcome = cli.run("doctor", str(tmp_path / "none.gguf"))
    assert (outcome.code, outcome.stderr) == (1, "")
    last = outcome.stdout.splitlines()[-1]
    assert last.startswith("problem  model")
    assert "there is no folder" in last


def test_a_damaged_file_ends_the_looks(pair):
    pair.write_bytes(pair.read_bytes()[:-1000])
    checks = checks_of(pair)
    assert list(checks) == ["model", "weights"]
    assert problems(checks) == ["weights"]


def test_a_file_that_cannot_be_read(pair, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(diagnosis, "open_model", refuse)
    assert checks_of(pair)["weights"].text == f"{pair}: Permission denied"


def test_a_tokenizer_at_fault_hides_nothing_else(pair, monkeypatch):
    def refuse(target):
        raise CheckpointError("it belongs to another model.")

    monkeypatch.setattr(diagnosis, "load_tokenizer", refuse)
    checks = checks_of(pair)
    assert problems(checks) == ["tokenizer"]
    assert list(checks) == MODEL


def test_a_model_without_a_drafter_is_worth_a_note(pair):
    pair.with_name("m-assistant.gguf").unlink()
    checks = checks_of(pair)
    assert checks["drafter"].status == "note"
    assert "--drafter" in checks["drafter"].text
    assert not problems(checks)
    assert "drafter" not in checks_of(pair, None)


def test_a_drafter_that_does_not_fit(pair):
    checks = checks_of(pair, pair)
    assert problems(checks) == ["drafter"]
    assert checks_of(pair, pair.with_name("none.gguf"))["drafter"].status == "problem"


def test_too_little_memory(pair, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 1000)
    checks = checks_of(pair)
    assert problems(checks) == ["needs"]
    assert "does not fit" in checks["needs"].text


def native(**changes):
    """A stand-in for the extension module of another processor."""
    available = changes.pop("available", ["portable", "avx2"])
    parts = {
        "isa_names": lambda: available,
        "isa_name": lambda: available[-1],
        "read_bandwidth": lambda pool, num_bytes: 2.5e10,
        "Pool": lambda threads: threads,
    }
    return SimpleNamespace(**(parts | changes))


def machine(monkeypatch, module, tmp_path, forced=None):
    monkeypatch.setattr(extension, "_native", module)
    return {check.name: check for check in diagnosis.check_machine(tmp_path, forced)}


def test_a_processor_without_vectors_works_slowly(monkeypatch, tmp_path):
    found = machine(monkeypatch, native(available=["portable"]), tmp_path)["instructions"]
    assert found.status == "note"
    assert "slowly" in found.text


def test_an_instruction_set_that_is_forced(monkeypatch, tmp_path):
    found = machine(monkeypatch, native(isa_name=lambda: "portable"), tmp_path, "portable")
    assert found["instructions"].status == "note"
    assert "PACELINE_ISA forces" in found["instructions"].text
    assert found["instructions"].values["forced"] == "portable"

    def unknown():
        raise ValueError("instruction set 'mmx' is unknown")

    found = machine(monkeypatch, native(isa_name=unknown), tmp_path, "mmx")
    assert found["instructions"].status == "problem"
    assert "PACELINE_ISA" in found["instructions"].text
    assert found["read speed"].text.startswith("25.0 GB/s")


def test_an_extension_that_cannot_be_imported(monkeypatch, tmp_path):
    monkeypatch.delitem(sys.modules, "paceline.extension")
    monkeypatch.setitem(sys.modules, "paceline._native", None)
    found = {check.name: check for check in diagnosis.check_machine(tmp_path, None)}
    assert found["native runtime"].status == "problem"
    assert "C++20 compiler" in found["native runtime"].text
    assert "read speed" not in found


def test_a_disk_that_is_nearly_full(monkeypatch, tmp_path):
    usage = SimpleNamespace(free=5_000_000_000)
    monkeypatch.setattr(diagnosis.shutil, "disk_usage", lambda place: usage)
    found = machine(monkeypatch, native(), tmp_path / "not" / "there")["disk"]
    assert found.status == "note"
    assert found.text == f"5.00 GB free in {tmp_path / 'not' / 'there'}: little for a model"


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}, "/a"),
        ({"HF_HOME": "/b", "XDG_CACHE_HOME": "/c"}, "/b/hub"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/huggingface/hub"),
        ({"HOME": "/d"}, "/d/.cache/huggingface/hub"),
    ],
)
def test_where_models_are_downloaded_to(monkeypatch, variables, folder):
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert str(environment.hub_folder()) == folder


@pytest.mark.parametrize(
    ("meminfo", "limit", "total"),
    [
        ("MemTotal: 1000 kB\n", None, 1_024_000),
        ("MemTotal: 1000 kB\n", "max", 1_024_000),
        ("MemTotal: 1000 kB\n", "5000", 5000),
        ("", None, None),
    ],
)
def test_memory_in_all(tmp_path, meminfo, limit, total):
    file = tmp_path / "meminfo"
    file.write_text(meminfo)
    if limit is not None:
        (tmp_path / "memory.max").write_text(limit)
    assert memory.total_memory(file, tmp_path) == total
