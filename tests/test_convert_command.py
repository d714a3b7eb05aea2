"""`paceline convert` and `paceline plan`, from the words typed to what is printed."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from gguf_pair import files, source
from paceline import memory, quality
from paceline.cli.app import main
from paceline.loading import load_pair
from paceline.quality import divergence


@pytest.fixture
def pair(tmp_path):
    shutil.copytree(source().target.path, tmp_path / "tiny")
    return tmp_path / "tiny"


def run(capsys, *words):
    status = main([str(word) for word in words])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_a_pair(pair, tmp_path, capsys):
    out, report = tmp_path / "x.gguf", tmp_path / "report.json"
    status, printed, told = run(
        capsys, "convert", pair, out, "--type", "q4_0", "--report", report, "--no-progress"
    )
    assert status == 0
    drafter = tmp_path / "x-assistant.gguf"
    assert printed.splitlines() == [
        f"wrote {out}: {out.stat().st_size:,} bytes",
        f"wrote {drafter}: {drafter.stat().st_size:,} bytes",
    ]
    assert load_pair(out).drafter is not None
    document = json.loads(report.read_text())
    assert document["type"] == "q4_0"
    assert [len(file["tensors"]) for file in document["files"]] == [67, 26]
    errors = {x["name"]: x["relative_error"] for x in document["files"][0]["tensors"]}
    assert 0.05 < errors["blk.0.ffn_up.weight"] < 0.12  # four bits
    assert 0.003 < errors["token_embd.weight"] < 0.01  # eight
    assert errors["output_norm.weight"] == 0.0
    rows = [line.split() for line in told.splitlines() if line.startswith("  blk.")]
    shown = [float(row[2]) for row in rows[:10]]
    assert shown == sorted(shown, reverse=True)
    assert shown[0] == round(max(errors.values()), 6)
    assert 0 < document["divergence"]["mean_kl"] <= document["divergence"]["worst_kl"]
    assert f"KL {document['divergence']['mean_kl']:.6f}" in told


def test_without_loss_there_is_no_divergence(pair, tmp_path, capsys):
    report = tmp_path / "report.json"
    run(capsys, "convert", pair, tmp_path / "x.gguf", "--type", "bf16", "--report", report)
    document = json.loads(report.read_text())["divergence"]
    assert (document["mean_kl"], document["top1_agreement"]) == (0.0, 1.0)


def test_divergence_of_known_distributions():
    first = np.log(np.array([[0.5, 0.25, 0.25], [0.9, 0.05, 0.05]], dtype=np.float32))
    second = np.log(np.array([[0.25, 0.5, 0.25], [0.9, 0.05, 0.05]], dtype=np.float32))
    result = divergence(first, second)
    assert result.worst_kl == pytest.approx(0.25 * np.log(2), rel=1e-6)
    assert result.mean_kl == pytest.approx(result.worst_kl / 2)
    assert (result.top1_agreement, result.num_positions) == (0.5, 2)


def test_without_a_drafter_and_without_divergence(pair, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(quality, "measure_divergence", None)
    words = ("--drafter", "none", "--no-divergence")
    status, printed, told = run(capsys, "convert", pair, tmp_path / "x.gguf", *words)
    assert status == 0
    assert len(printed.splitlines()) == 1
    assert "KL" not in told
    assert not (tmp_path / "x-assistant.gguf").exists()


def test_predictions_that_do_not_fit_are_not_compared(pair, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 1000)
    status, _, told = run(capsys, "convert", pair, tmp_path / "x.gguf")
    assert status == 0
    assert "note: predictions were not compared: this model does not fit" in told


def test_a_drafter_alone_takes_its_targets_tokenizer(pair, tmp_path, capsys):
    out = tmp_path / "d.gguf"
    status, printed, told = run(capsys, "convert", pair / "assistant", out)
    assert status == 0
    assert load_pair(pair, out).drafter is not None
    shutil.copytree(pair / "assistant", tmp_path / "elsewhere" / "lone")
    lone = tmp_path / "elsewhere" / "lone"
    status, printed, told = run(capsys, "convert", lone, out)
    assert (status, printed) == (1, "")
    assert "pass it with --tokenizer" in told
    status, _, _ = run(capsys, "convert", lone, out, "--tokenizer", pair / "tokenizer.json")
    assert status == 0


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["{pair}", "x.bin"], 2, "x.bin must end in .gguf"),
        (["{pair}", "no/such/folder/x.gguf"], 2, "is not a file in a folder that exists"),
        (["{pair}", "{tmp}/x.gguf", "--report", "{tmp}"], 2, "is not a file in a folder"),
        (["{tmp}", "{tmp}/x.gguf"], 1, "has no config.json"),
        (["{pair}", "{tmp}/x.gguf", "--drafter", "{drafter}"], 1, "only folders are converted"),
        (["{pair}", "{tmp}/x.gguf", "--type", "q5_1"], 2, "q5_1"),
    ],
)
def test_words_that_cannot_be(words, status, message, pair, tmp_path, capsys):
    places = {"pair": pair, "tmp": tmp_path, "drafter": files("Q8_0")[1]}
    got = run(capsys, "convert", *(word.format(**places) for word in words))
    assert (got[0], got[1]) == (status, "")
    assert message in got[2]
    assert not list(tmp_path.glob("*.gguf*"))


def test_a_full_disk(pair, tmp_path, capsys, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    status, _, told = run(capsys, "convert", pair, tmp_path / "x.gguf")
    assert status == 1
    assert "its disk has 0.0 GB left" in told


# plan


def table(printed):
    return {line.split("  ")[0]: line.split()[-2:] for line in printed.splitlines()}


@pytest.mark.parametrize("model", ["folder", "file"])
def test_the_plan_of_a_pair(model, pair, capsys):
    path = pair if model == "folder" else files("Q8_0")[0]
    status, printed, told = run(capsys, "plan", path, "--context", 100)
    assert (status, told) == (0, "")
    rows = table(printed)
    assert list(rows) == ["model", "runtime", "target", "drafter", "KV cache", "needed", "free"]
    assert "100 tokens" in printed
    assert rows["needed"][1] == "MB"


def test_a_plan_needs_the_config_only(pair, capsys):
    whole = run(capsys, "plan", pair)
    for file in pair.rglob("*.safetensors"):
        file.unlink()
    (pair / "tokenizer.json").unlink()
    assert table(run(capsys, "plan", pair)[1])["needed"] == table(whole[1])["needed"]


def test_a_plan_that_cannot_fit(pair, capsys, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 300_000)
    status, printed, told = run(capsys, "plan", pair, "--runtime", "torch")
    assert status == 1
    assert table(printed)["free"] == ["0.3", "MB"]
    assert told.startswith("error: this model does not fit: it needs 1.")


def test_half_the_bytes_in_bfloat16(pair, capsys):
    sizes = [
        float(
            table(run(capsys, "plan", pair, "--dtype", dtype, "--drafter", "none")[1])["target"][0]
        )
        for dtype in ("float32", "bfloat16")
    ]
    assert sizes[1] == pytest.approx(sizes[0] / 2, abs=0.1)


def test_a_context_past_the_model(pair, capsys):
    status, _, told = run(capsys, "plan", pair, "--context", 300)
    assert status == 2
    assert "--context=300 is out of range: expected 1 to 256" in told
