"""What `benchmarks/verify_cost.py` is made of: geometries, synthetic files, floors, order, report.

Nothing here looks at a clock: times come from fakes.
"""

from __future__ import annotations

import json
import math
import sys
from collections import namedtuple
from dataclasses import replace

import numpy as np
import pytest

import cost_measure
import cost_report
import memory_probe
import synthetic_gguf
import verify_cost
from cost_measure import (
    Decoding,
    Paceline,
    in_turn,
    measure_decoding,
    measure_prefill,
    measure_rows,
)
from cost_model import pass_cost, weight_bytes
from cost_report import Results, document, draw, relative, table
from llama_cpp_worker import LlamaCpp, LlamaCppError
from memory_probe import Memory
from paceline.checkpoint.convert import stored_dtype
from paceline.checkpoint.gguf_model import open_drafter_file, open_target_file
from paceline.checkpoint.gguf_tokenizer import read_tokenizer
from paceline.checkpoint.names import target_table
from paceline.checkpoint.quantise import BLOCK_BYTES, dequantise
from paceline.config import check_pair
from paceline.errors import CheckpointError, ConfigError
from paceline.loading import load_pair
from paceline.memory import num_weights
from paceline.runtime.protocols import ArrayOutput
from released_geometries import NAMES, RELEASED, geometry
from synthetic_gguf import DTYPES, ordinary_tokens, random_values, tokenizer_document, write_pair

TINY = ("tiny", "tiny-experts")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic")
    return {
        (name, dtype): write_pair(geometry(name), dtype, folder)
        for name in TINY
        for dtype in DTYPES
    }


@pytest.fixture(scope="module")
def pair(files):
    return load_pair(files["tiny", "Q8_0"].target, runtime="native", threads=1)


# --- Geometries


# Reference section 9: parameters of target and drafter, and what a token reads of the target.
TOTALS = {
    "E2B": (4.63e9, 77.7e6, 2.28e9),
    "E4B": (7.46e9, 78.5e6, 4.64e9),
    "12B": (11.91e9, 422.9e6, 11.91e9),
    "26B-A4B": (25.23e9, 419.7e6, 3.82e9),
    "31B": (30.70e9, 469.5e6, 30.70e9),
}


@pytest.mark.parametrize("name", RELEASED)
def test_released_geometries_have_the_published_sizes(name):
    whole = geometry(name, {"E2B": 35, "E4B": 42, "12B": 48, "26B-A4B": 30, "31B": 60}[name])
    target, drafter, active = TOTALS[name]
    assert num_weights(whole.target) == pytest.approx(target, rel=2e-3)
    assert num_weights(whole.drafter) == pytest.approx(drafter, rel=2e-3)
    macs = pass_cost(whole.target, "Q8_0", rows=1, context=0, num_outputs=1).macs
    assert macs == pytest.approx(active, rel=4e-3)


@pytest.mark.parametrize("name", NAMES)
def test_cut_geometries_keep_their_kinds(name):
    whole = geometry(name)
    for periods in range(1, whole.target.num_layers // whole.period + 1):
        cut = geometry(name, periods * whole.period)
        check_pair(cut.target, cut.drafter)
        assert cut.target.layer_kinds[-1] == "global"
        assert cut.target.layer_kinds.count("global") == periods
        assert cut.target.num_kv_shared_layers % whole.period == 0
    assert geometry("e2b").target.num_kv_shared_layers == 20
    assert geometry("e2b", 15).target.num_kv_shared_layers == 10
    assert geometry("e2b", 5).target.num_kv_shared_layers == 0


@pytest.mark.parametrize("layers", [0, 1, 36, 40, -5])
def test_impossible_layers(layers):
    with pytest.raises(ConfigError, match="expected a multiple of 5"):
        geometry("E2B", layers)


def test_an_unknown_geometry():
    with pytest.raises(ConfigError, match="no geometry '3B': expected one of E2B, E4B"):
        geometry("3B")


# --- Synthetic files


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("dtype", DTYPES)
def test_synthetic_files_pass_every_check(name, dtype, files):
    written, shape = files[name, dtype], geometry(name)
    target, drafter = open_target_file(written.target), open_drafter_file(written.drafter)
    assert target.config == shape.target
    assert drafter.config == shape.drafter
    check_pair(target.config, drafter.config)
    assert read_tokenizer(target.file).vocab_size == shape.target.vocab_size
    for weights, of_drafter in ((target.weights, False), (drafter.weights, True)):
        for weight in weights.tensors:
            if weight.spec.kind == "weight" and not weight.spec.name.startswith("masked_embedding"):
                assert weight.dtype == stored_dtype(weight.spec, dtype, of_drafter=of_drafter)
            for _ in weight.slices():
                pass  # each slice was checked


def test_the_same_seed_gives_the_same_bytes(files, tmp_path):
    again = write_pair(geometry("tiny"), "Q4_0", tmp_path)
    assert again.target.read_bytes() == files["tiny", "Q4_0"].target.read_bytes()
    assert again.drafter.read_bytes() == files["tiny", "Q4_0"].drafter.read_bytes()
    other = write_pair(geometry("tiny"), "Q4_0", tmp_path, seed=1)
    assert other.target.read_bytes() != again.target.read_bytes()


def test_files_that_are_there_are_used_again(tmp_path, monkeypatch):
    first = write_pair(geometry("tiny"), "Q4_0", tmp_path)
    first.drafter.unlink()
    content = first.target.read_bytes()
    wrote = []
    write = synthetic_gguf.write_gguf
    monkeypatch.setattr(
        synthetic_gguf, "write_gguf", lambda path, *rest: wrote.append(path) or write(path, *rest)
    )
    assert write_pair(geometry("tiny"), "Q4_0", tmp_path) == first
    assert wrote == [first.drafter]
    assert first.target.read_bytes() == content


def test_a_full_disk(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(synthetic_gguf.shutil, "disk_usage", lambda path: usage(10_000))
    with pytest.raises(CheckpointError, match=r"need 0\.0 GB, but the disk of .* --layers"):
        write_pair(geometry("tiny"), "Q4_0", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot write to .*--work"):
        write_pair(geometry("tiny"), "Q4_0", tmp_path / "file" / "folder")


@pytest.mark.parametrize("dtype", [*DTYPES, "F32"])
@pytest.mark.parametrize("deviation", [1536**-0.5, 21_504**-0.5, 1 / 16])
def test_random_values_have_the_wanted_size(dtype, deviation):
    stored = random_values(np.random.default_rng(0), 1 << 16, dtype, deviation)
    values = dequantise(stored, dtype).astype(np.float64)
    assert abs(values.mean()) < 0.03 * deviation  # 7 standard errors
    # bfloat16 takes the nearest power of two, blocks round their scale
    assert 0.7 * deviation < values.std() < 1.42 * deviation
    if dtype in BLOCK_BYTES:
        assert values.std() == pytest.approx(deviation, rel=0.05)


def test_activations_stay_near_one(pair):
    """Random text gives scores of about the size of a trained model's, through all layers."""
    side = Paceline(pair.target, 128, 16)
    rows = cost_measure.Rows(
        cache=side.cache, token_ids=ordinary_tokens(100, 1024), num_outputs=100
    )
    logits = pair.target.forward([rows])[0].logits
    assert np.isfinite(logits).all()
    assert 0.3 < logits.std() < 3
    assert len(set(logits.argmax(axis=1).tolist())) > 50  # rows differ


@pytest.mark.parametrize("size", [1024, 5000, 262_144])
def test_vocabularies_of_any_size(size):
    document = tokenizer_document(size)
    vocab = document["model"]["vocab"]
    assert sorted(vocab.values()) == list(range(size))
    assert all(left + right in vocab for left, right in document["model"]["merges"])
    tokens = ordinary_tokens(1000, size)
    special = {token["id"] for token in document["added_tokens"]}
    assert special.isdisjoint(tokens[1:])
    assert tokens[0] == vocab["<bos>"]
    assert max(tokens) < size


# --- Floors


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_dense_pass_reads_the_file_but_for_looked_up_rows(dtype, files):
    shape = geometry("tiny")
    weights = open_target_file(files["tiny", dtype].target).weights
    table_bytes = next(
        x for x in weights.tensors if "per_layer" in x.spec.name and x.spec.shape[0] == 1024
    )
    used = weights.num_bytes - table_bytes.num_bytes
    assert weight_bytes(shape.target, dtype) == used
    one = pass_cost(shape.target, dtype, rows=1, context=0, num_outputs=1)
    kv = sum(2 * 2 * x.num_kv_heads * x.head_dim for x in shape.target.layers if x.owns_kv)
    assert one.read_bytes == used + kv + table_bytes.num_bytes // 1024
    eight = pass_cost(shape.target, dtype, rows=8, context=0, num_outputs=8)
    assert eight.read_bytes == used + 8 * (kv + table_bytes.num_bytes // 1024)


def test_experts_are_read_as_rows_choose_them():
    target = geometry("26B-A4B").target
    specs = target_table(target).specs
    experts = sum(math.prod(x.shape) for x in specs if ".experts." in x.name)
    reads = {
        rows: pass_cost(target, "BF16", rows=rows, context=0, num_outputs=rows).read_bytes
        for rows in (1, 2, 4096)
    }
    assert weight_bytes(target, "BF16") - reads[1] == pytest.approx(2 * experts * 15 / 16, rel=1e-3)
    assert reads[2] - reads[1] == pytest.approx(2 * experts * (1 / 16) * (15 / 16), rel=1e-2)
    assert reads[4096] > weight_bytes(target, "BF16")


def test_a_prompt_need_not_pass_the_shared_layers():
    target = geometry("E2B").target
    one = pass_cost(target, "Q4_0", rows=1, context=0, num_outputs=1).macs
    whole = pass_cost(target, "Q4_0", rows=512, context=0, num_outputs=512).macs
    last = pass_cost(target, "Q4_0", rows=512, context=0, num_outputs=1).macs
    assert whole > 511 * one
    assert last < 0.35 * whole


# --- Order and times


class FakeSide:
    """A side whose passes take a known time: `cost` for each row, half on every second pass."""

    def __init__(self, name, cost):
        self.name = name
        self.cost = cost
        self.length = 0
        self.calls = []

    def feed(self, token_ids, num_outputs):
        self.calls.append((self.length, len(token_ids), num_outputs))
        self.length += len(token_ids)
        return self.cost * len(token_ids) * (2 if len(self.calls) % 2 else 1)

    def truncate(self, length):
        assert length <= self.length
        self.length = length


def test_in_turn_drops_the_first_repeat_and_turns_round():
    ends = []
    order = list(in_turn(2, [1, 2], "ab", every=lambda: ends.append(1)))
    letters = ["".join(f"{m}{side}" for _, (m, side) in order[i : i + 4]) for i in (0, 4, 8)]
    assert letters == ["2b2a1b1a", "1a1b2a2b", "2b2a1b1a"]
    assert [counts for counts, _ in order] == [False] * 4 + [True] * 8
    assert len(ends) == 2


def test_every_pass_starts_at_the_context_and_the_second_counts():
    sides = [FakeSide("ours", 1.0), FakeSide("theirs", 3.0)]
    samples = measure_rows(sides, range(10), range(8), (1, 2, 4), 3)
    for side in sides:
        assert side.calls[0] == (0, 10, 1)
        assert all(start == 10 and rows == outputs for start, rows, outputs in side.calls[1:])
        assert len(side.calls) == 1 + 2 * 3 * 4
        # the prefill was the first pass, so that every counted pass is an odd one
        assert samples[side.name] == {m: [2 * m * side.cost] * 3 for m in (1, 2, 4)}


def test_prefill_comes_in_the_engines_chunks():
    side = FakeSide("ours", 1.0)
    chunk = cost_measure.PREFILL_CHUNK
    measure_prefill([side], range(2 * chunk + 1), 1)
    one = [(0, chunk, 0), (chunk, chunk, 0), (2 * chunk, 1, 1)]
    assert side.calls == one * 2


def test_rounds_emit_whole_drafts_and_change_no_token(pair):
    context = ordinary_tokens(40, 1024)
    found = measure_decoding(pair, context, 12, 3, 1)
    assert found.equal
    assert len(found.tps["paceline"]) == 1
    assert len(found.outside_s) == len(found.draft_step_s) == 3  # 12 tokens, 4 a round
    assert all(0 < share < 1 for share in found.outside_share)
    assert len(found.plain_outside_s) == 12


def test_a_wrong_answer_is_seen(pair, monkeypatch):
    """A runtime whose text depends on the draft does not pass for equal."""
    forward = cost_measure.TimedTarget.forward

    def spoiled(self, rows):
        outputs = forward(self, rows)
        if len(rows[0].token_ids) == 4:
            outputs = [ArrayOutput.without_candidates(-x.logits, x.hidden) for x in outputs]
        return outputs

    monkeypatch.setattr(cost_measure.TimedTarget, "forward", spoiled)
    assert not measure_decoding(pair, ordinary_tokens(40, 1024), 12, 3, 1).equal


def test_memory_of_a_pair(files, pair, monkeypatch):
    monkeypatch.setattr(memory_probe, "load_pair", lambda *_, **__: pair)
    found = memory_probe._measure("target", "drafter", "torch", 1, 70)
    assert 0 < found.bare_bytes <= found.peak_rss_bytes
    assert 0 < found.anonymous_bytes <= found.rss_bytes <= found.peak_rss_bytes
    assert found.kv_bytes > 0


def test_a_memory_process_that_fails(tmp_path):
    with pytest.raises(memory_probe.ProbeError, match=r"measuring memory failed: .*absent"):
        memory_probe.probe(tmp_path / "absent.gguf", None, runtime="torch", threads=1, context=8)


@pytest.mark.parametrize(
    ("python", "message"),
    [("/no/such/python", "cannot run /no/such/python"), ("true", "true cannot use llama_cpp")],
)
def test_a_python_without_llama_cpp(python, message):
    with pytest.raises(LlamaCppError, match=message):
        LlamaCpp(python)


def test_answers_of_the_other_process(tmp_path, monkeypatch):
    """The pipe, with a stand-in for the package: answers, noise, errors."""
    (tmp_path / "llama_cpp.py").write_text(
        "__version__ = '1'\n"
        "def llama_backend_init(): print('noise')\n"
        "def llama_print_system_info(): return b'X = 1'\n"
        "def llama_model_default_params(): return None\n"
        "def llama_model_load_from_file(path, params): return None\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with LlamaCpp(sys.executable) as llama:
        assert llama.about == {"version": "1", "system": "X = 1"}
        with pytest.raises(LlamaCppError, match=r"refuses x\.gguf"):
            llama.ask("load", path="x.gguf", threads=1, max_length=8, max_outputs=1)
        assert llama.ask("memory")["VmHWM"] > 0


# --- The report

MEMORY = Memory(
    bare_bytes=1_000,
    loaded_bytes=2_000_000,
    rss_bytes=3_000_000,
    anonymous_bytes=2_500_000,
    peak_rss_bytes=4_000_000,
    kv_bytes=200_000,
    load_s=1.5,
)
FIELDS = {
    *("geometry", "quant", "threads", "bandwidth_gbps", "T_s", "v", "decode_tps", "prefill_tps"),
    *("draft_step_s", "round_overhead_s", "weights_bytes", "peak_rss_bytes", "drafter_rss_bytes"),
    "llama_cpp",
}


def results(**changes):
    rows = {1: [0.010, 0.012, 0.011], 2: [0.013, 0.012, 0.014]}
    whole = Results(
        geometry=geometry("tiny"),
        dtype="Q4_0",
        runtime="native",
        threads=2,
        context=512,
        draft=4,
        rows={
            "paceline": rows,
            "llama_cpp": {m: [2 * x for x in values] for m, values in rows.items()},
        },
        prefill_tokens=512,
        prefill={"paceline": [0.5, 0.25, 1.0], "llama_cpp": [2.0, 2.0, 2.0]},
        decoding=Decoding(
            tps={"paceline": [90.0, 100.0, 80.0], "llama_cpp": [45.0, 50.0, 50.0]},
            outside_s=[1e-4],
            outside_share=[0.005],
            plain_outside_s=[5e-5],
            draft_step_s=[1e-4, 3e-4, 2e-4],
            equal=True,
        ),
        bandwidths=[40e9, 42e9, 41e9],
        product_rates={1: 1e9, 2: 2e9, 128: 4e9},
        memory=MEMORY,
        memory_alone=replace(MEMORY, rss_bytes=2_900_000, load_s=4.5),
        llama={"version": "1", "memory": {"VmHWM": 7}},
    )
    return replace(whole, **changes)


def test_the_document_has_the_promised_fields():
    found = document(results(), {"commit": "x"})
    assert found.keys() >= FIELDS
    assert FIELDS - {"geometry", "quant", "threads", "bandwidth_gbps", "llama_cpp"} <= set(
        found["llama_cpp"]
    )
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["bandwidth_gbps"] == 41.0
    assert found["T_s"] == {"1": 0.011, "2": 0.013}
    assert found["T_s_spread"]["1"] == [0.010, 0.012]
    assert found["v"] == {"1": 1.0, "2": 1.1818}
    assert found["decode_tps"] == 90.0
    assert found["prefill_tps"] == 1024.0
    assert found["draft_step_s"] == 2e-4
    assert found["drafter_rss_bytes"] == 100_000
    assert (found["load_s"], found["load_cold_s"]) == (1.5, 4.5)
    assert found["llama_cpp"]["T_s"]["2"] == 0.026
    assert found["ratios"]["T"] == {"1": 2.0, "2": 2.0}
    assert found["ratios"]["prefill"] == 4.0  # the median of 4, 8 and 2
    assert found["ratios"]["decode"] == 2.0  # the median of 2, 2 and 1.6


def test_the_roofline_is_floor_over_time():
    measured = results()
    roofline = document(measured, {})["roofline"]
    cost = pass_cost(measured.geometry.target, "Q4_0", rows=2, context=512, num_outputs=2)
    assert roofline["read_bytes"]["2"] == cost.read_bytes
    assert roofline["share_of_bandwidth"]["2"] == round(cost.read_bytes / 41e9 / 0.013, 4)
    assert roofline["gmac_per_s"]["2"] == round(cost.macs / 0.013 / 1e9, 1)
    assert roofline["product_floor_s"]["2"] == round(cost.macs / 2e9, 6)
    assert roofline["share_of_products"]["2"] == round(cost.macs / 2e9 / 0.013, 4)
    prompt = pass_cost(measured.geometry.target, "Q4_0", rows=512, context=0, num_outputs=1)
    assert roofline["prefill_share_of_products"] == round(prompt.macs / 4e9 / 0.5, 4)


def test_what_was_not_measured_is_null(tmp_path):
    alone = results(
        rows={"paceline": {1: [0.01]}},
        prefill={"paceline": [0.5]},
        memory=None,
        memory_alone=None,
        product_rates={},
        llama=None,
        decoding=replace(
            results().decoding,
            tps={"paceline": [90.0]},
            outside_s=[],
            outside_share=[],
            draft_step_s=[],
        ),
    )
    found = document(alone, {})
    nulls = ("draft_step_s", "round_overhead_s", "peak_rss_bytes", "drafter_rss_bytes", "llama_cpp")
    assert all(found[name] is None for name in nulls)
    assert table(found)
    draw(found, tmp_path / "figure.png")


def test_table_and_figure(tmp_path):
    found = document(results(), {})
    lines = table(found)
    header = " ".join(lines[0].split())
    assert header == "M ms (spread) v of bandwidth of products llama.cpp ms v ratio"
    assert lines[2].split()[:6] == ["2", "13.00", "(12.00", "to", "14.00)", "1.18"]
    assert lines[2].split()[-1] == "2.00"
    text = "\n".join(lines)
    assert "decode: 90.0 tok/s" in text
    assert "2.00 x llama.cpp" in text
    assert "the drafter 0 MB" in text
    draw(found, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_relative_costs_are_of_medians():
    assert relative({1: [1.0, 2.0, 9.0], 4: [3.0, 3.0, 3.0]}) == {1: 1.0, 4: 1.5}


# --- The script


@pytest.mark.parametrize("busy", [False, True])
def test_the_whole_script(busy, tmp_path, capsys, monkeypatch, pair):
    """From the arguments to the last line, with the pair that is already loaded."""
    monkeypatch.setattr(verify_cost, "load_average", lambda: 3.0 if busy else 0.1)
    monkeypatch.setattr(verify_cost, "load_pair", lambda *_, **__: pair)
    monkeypatch.setattr(verify_cost, "bandwidth_meter", lambda *_: lambda: 1e9)
    monkeypatch.setattr(verify_cost, "product_rates", lambda *_: {1: 1e9, 2: 1e9})
    status = verify_cost.main(
        "--geometry tiny --quant Q8_0 --runtime torch --no-memory --repeats 1 --rows 2 --threads 1 "
        f"--context 30 --prefill-tokens 40 --decode-tokens 6 --draft 2 --work {tmp_path} "
        f"--results {tmp_path}".split()
    )
    assert status == 0
    captured = capsys.readouterr()
    assert ("keep 3.0 processors busy" in captured.err) == busy
    last = json.loads(captured.out.splitlines()[-1])
    assert last["geometry"] == "tiny"
    assert list(last["T_s"]) == ["1", "2"]
    assert last["equal"]
    kept = json.loads((tmp_path / "verify-cost-tiny-q8_0.json").read_text())
    assert kept == last
    assert (tmp_path / "verify-cost-tiny-q8_0.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--geometry 3B", "there is no geometry '3B'"),
        ("--layers 4", "--layers 4 is not possible for E2B"),
        ("--rows 0", "--rows=0 is out of range: expected 1 to 64"),
        ("--decode-tokens 3", "--decode-tokens=3 is out of range"),
        ("--llama-cpp /no/such/python", "cannot run /no/such/python"),
    ],
)
def test_impossible_arguments(arguments, message, capsys, tmp_path):
    work = ["--work", str(tmp_path), "--runtime", "torch", "--no-save"]
    assert verify_cost.main([*arguments.split(), *work]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.out == ""


def test_the_machines_folder(monkeypatch):
    monkeypatch.setattr(verify_cost, "processor_name", lambda: "Some(R) CPU @ 2.0GHz")
    monkeypatch.setattr(verify_cost.os, "cpu_count", lambda: 2)
    assert verify_cost.machine_name() == "some-r-cpu-2-0ghz-2-cores"


def test_the_report_takes_the_names_of_the_sides():
    assert {Paceline.name, cost_measure.LlamaSide.name} == {cost_report.OURS, cost_report.THEIRS}
