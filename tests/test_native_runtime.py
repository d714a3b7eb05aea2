"""The native runtime behind its protocols: loading, memory, candidates, and what is refused."""

from __future__ import annotations

import gc
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import native_twins
import pairs
from fakes import candidates_of
from gguf_pair import files, source
from native_twins import ignore, stored
from paceline import _native
from paceline.checkpoint.weights import Weights
from paceline.cpu import default_threads
from paceline.engine import Engine
from paceline.errors import CacheError, CheckpointError, ConfigError
from paceline.loading import SHIPPED_FILE, choose_runtime, load_pair, read_outline
from paceline.memory import native_kv_bytes, packed_bytes, plan_memory
from paceline.runtime.native import load
from paceline.runtime.protocols import DraftRequest, Rows
from paceline.runtime.torch.layers import rope_frequencies
from paceline.sampling import Candidates, DrawRule, Sampler, SamplingParams
from shipped import native_pair

EMBEDDING = "embed_tokens.weight"
PER_LAYER = "embed_tokens_per_layer.weight"


def with_tensor(weights, name, change):
    return Weights(tensors=tuple(change(x) if x.spec.name == name else x for x in weights.tensors))


def load_target(weights, name="e2b"):
    return load.load_target(stored(name, "F32").target_config, weights, load.new_pool(1, 0), ignore)


# Loading


@pytest.mark.parametrize("dtype", ["Q4_0", "Q8_0", "BF16"])
def test_a_pair_of_files(dtype):
    calls = []
    pair = load_pair(files(dtype)[0], progress=lambda *sizes: calls.append(sizes), threads=1)
    assert (pair.runtime, pair.dtype, pair.threads) == ("native", dtype, 1)
    assert pair.target.config == source().target.config
    assert pair.drafter.config == source().drafter.config
    read, total = zip(*calls, strict=True)
    assert set(total) == {pair.weight_bytes} == {read[-1]}
    assert list(read) == sorted(set(read))


def test_a_folder_and_its_bf16_file_give_the_same_bits():
    logits = []
    for path in (files("BF16")[0], source().target.path):
        target = load_pair(path, threads=1).target
        rows = Rows(cache=target.new_cache(50, 4), token_ids=range(5, 45), num_outputs=40)
        logits.append(target.forward([rows])[0].logits)
    assert np.array_equal(*logits)


def test_the_largest_tensors_come_first_but_for_the_ordering(monkeypatch):
    loaded = []
    monkeypatch.setattr(load, "_load", lambda inner, weight: loaded.append(weight))
    weights = stored("e2b", "F32").drafter_weights

    class Nobody:
        def finish(self):
            pass

    load._fill(Nobody(), weights, ignore)
    assert loaded[0].spec.kind == "token_ordering"
    sizes = [weight.num_bytes for weight in loaded[1:]]
    assert sizes == sorted(sizes, reverse=True)
    assert len(loaded) == len(weights.tensors)


def test_rotary_frequencies_are_the_twins():
    config = stored("e2b", "F32").target_config
    for kind in ("sliding", "global"):
        head_dim = config.head_dim_of(kind)
        got = load.rope_frequencies(config.rope(kind), head_dim)
        expected = rope_frequencies(config.rope(kind), head_dim).numpy()
        assert got.dtype == expected.dtype == np.float32
        np.testing.assert_allclose(got, expected, rtol=2.0**-23, atol=0)  # the last bit of a power


def test_threads_default_to_the_cores(monkeypatch):
    monkeypatch.setattr(load, "default_threads", default_threads)
    assert load.new_pool(None, load.SMALL_MODEL).threads == default_threads()
    assert load.new_pool(None, load.SMALL_MODEL - 1).threads == 1
    assert load.new_pool(3, 0).threads == 3


def test_the_native_runtime_is_the_default_and_a_dtype_asks_for_torch():
    assert choose_runtime() == choose_runtime("native") == "native"
    assert choose_runtime("torch") == choose_runtime("auto", "bfloat16") == "torch"
    with pytest.raises(ConfigError, match="dtype 'bfloat16' belongs to the torch runtime"):
        choose_runtime("native", "bfloat16")


def test_running_natively_imports_no_torch():
    code = (
        "import sys; from paceline import Engine; engine = Engine.load(threads=1);"
        "engine.generate('Hi', max_tokens=3); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# What is refused


def test_a_nan_is_refused_by_name():
    def damage(weight):
        data = np.array(weight.data)
        data[3, 1] = np.nan
        return replace(weight, data=data)

    name = "layers.3.mlp.up_proj.weight"
    weights = with_tensor(stored("e2b", "F32").target_weights, name, damage)
    with pytest.raises(CheckpointError, match=r"layers\.3\.mlp\.up_proj\.weight .*holds a NaN"):
        load_target(weights)


def test_an_infinite_scale_is_refused_by_name():
    def damage(weight):
        data = np.array(weight.data)
        data[:2] = np.frombuffer(np.float16(np.inf).tobytes(), np.uint8)
        return replace(weight, data=data)

    weights = stored("e2b", "Q8_0").target_weights
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight .*holds a NaN, an infinite"):
        load_target(with_tensor(weights, EMBEDDING, damage))


def test_a_damaged_row_of_the_per_layer_table_is_refused_when_it_is_read():
    """The table is too large to be looked through. The cache can go on where it was."""

    def damage(weight):
        data = np.array(weight.data)
        data[17] = 0x7F80
        return replace(weight, data=data)

    weights = stored("e2b", "BF16").target_weights
    target = load_target(with_tensor(weights, PER_LAYER, damage))
    cache = target.new_cache(40, 4)
    target.forward([Rows(cache=cache, token_ids=[5, 6, 7])])
    with pytest.raises(CheckpointError, match="per-layer embeddings are damaged"):
        target.forward([Rows(cache=cache, token_ids=[8, 17])])
    cache.truncate(3)
    (output,) = target.forward([Rows(cache=cache, token_ids=[9])])
    assert np.isfinite(output.logits).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: replace(x, data=x.data[:-1]), "embed_tokens.weight"),
        (lambda x: replace(x, dtype="Q6_K"), "Q6_K"),
        (lambda x: replace(x, dtype="I64"), "I64"),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused_by_name(change, message):
    weights = with_tensor(stored("e2b", "F32").target_weights, EMBEDDING, change)
    with pytest.raises(CheckpointError, match=message):
        load_target(weights)


def test_a_missing_tensor_is_refused_by_name():
    weights = stored("e2b", "F32").target_weights
    others = tuple(x for x in weights.tensors if x.spec.name != "norm.weight")
    with pytest.raises(CheckpointError, match=r"cannot run this: .*norm\.weight"):
        load_target(Weights(tensors=others))


def test_an_ordering_that_names_a_token_twice_is_refused():
    def repeat(weight):
        return replace(weight, data=np.zeros_like(weight.data))

    pair = stored("e2b", "F32")
    name = "masked_embedding.token_ordering"
    weights = with_tensor(pair.drafter_weights, name, repeat)
    target = native_twins.native("e2b", "F32").target
    with pytest.raises(CheckpointError, match="each of the 384 token ids exactly once"):
        load.load_drafter(pair.drafter_config, weights, load.new_pool(1, 0), ignore, target)


def test_a_drafter_of_another_target_is_refused():
    """Where nobody compared the configs: the shapes do not fit."""
    pair, other = stored("e4b", "F32"), native_twins.native("e2b", "F32").target
    with pytest.raises(CheckpointError, match="cannot run this"):
        load.load_drafter(
            pair.drafter_config, pair.drafter_weights, load.new_pool(1, 0), ignore, other
        )


def test_a_cache_refuses_in_the_words_of_the_torch_runtime():
    pair = native_twins.native("e2b", "F32"), native_twins.twin("e2b", "F32")
    told = []
    for target in (pair[0].target, pair[1].target):
        cache = target.new_cache(20, 4)
        target.forward([Rows(cache=cache, token_ids=range(5, 23))])
        for act in (
            lambda cache=cache: cache.truncate(19),
            lambda t=target, cache=cache: t.forward([Rows(cache=cache, token_ids=[1, 2, 3])]),
        ):
            with pytest.raises(CacheError) as refusal:
                act()
            told.append(str(refusal.value))
        assert cache.length == 18
        cache.truncate(0)
        assert cache.length == 0
    assert told[:2] == told[2:]


def test_a_pass_that_one_sequence_has_no_room_for_changes_none():
    target = native_twins.native("e2b", "F32").target
    caches = target.new_cache(20, 4), target.new_cache(10, 4)
    rows = [Rows(cache=cache, token_ids=range(5, 17)) for cache in caches]
    with pytest.raises(CacheError, match="12 positions do not fit"):
        target.forward(rows)
    assert [cache.length for cache in caches] == [0, 0]


@pytest.mark.parametrize("settings", [(0, 4), (10**6, 4), (20, -1)])
def test_a_cache_of_no_possible_size(settings):
    with pytest.raises(ConfigError, match="out of range"):
        native_twins.native("e2b", "F32").target.new_cache(*settings)


def test_what_rings_have_overwritten_cannot_be_reached():
    target = native_twins.native("12b", "F32").target
    cache = target.new_cache(500, 4)
    target.forward([Rows(cache=cache, token_ids=pairs.tokens(400))])
    shortest = cache.shortest_truncation
    assert 0 < shortest <= 400 - 128
    with pytest.raises(CacheError, match=f"reach back to {shortest}"):
        cache.truncate(shortest - 1)
    cache.truncate(shortest)
    assert cache.length == shortest


# Memory


@pytest.mark.parametrize("path", [None, "Q4_0", "BF16"])
def test_the_plan_is_what_the_runtime_holds(path):
    file = None if path is None else files(path)[0]
    pair = native_pair() if file is None else load_pair(file, threads=1)
    opened = file or SHIPPED_FILE
    plan = plan_memory(read_outline(opened, "auto"), runtime="native", context=200)
    assert plan.target_bytes == pair.target.inner.weight_bytes
    assert plan.drafter_bytes == pair.drafter.inner.weight_bytes
    assert pair.bytes_per_token == plan.target_bytes


@pytest.mark.parametrize("name", ["e2b", "e4b", "12b", "26b", "31b"])
@pytest.mark.parametrize("dtype", ["F32", "Q4_0"])
def test_the_plan_of_every_geometry(name, dtype):
    pair, files_of = native_twins.native(name, dtype), stored(name, dtype)
    for inner, weights in (
        (pair.target.inner, files_of.target_weights),
        (pair.drafter.inner, files_of.drafter_weights),
    ):
        assert inner.weight_bytes == sum(packed_bytes(x.spec, x.dtype) for x in weights.tensors)


@pytest.mark.parametrize("context", [1, 64, 65, 200, 256])
def test_the_cache_is_as_large_as_planned(context):
    target = load_pair(files("Q8_0")[0], threads=1).target
    cache = target.new_cache(target.config.context_length, 8)
    first = max(1, context - 64)  # the worst case: full to the last slot, then one more
    target.forward([Rows(cache=cache, token_ids=[5] * first)])
    if context > first:
        target.forward([Rows(cache=cache, token_ids=[5] * (context - first))])
    assert cache.kv_bytes == native_kv_bytes(target.config, context)


LOAD_AND_REPORT = """
import sys
from paceline.checkpoint.gguf_model import open_target_file
from paceline.runtime.native import load
from pathlib import Path
def kilobytes(name):
    line = next(x for x in open("/proc/self/status") if x.startswith(name))
    return int(line.split()[1])
opened = open_target_file(Path(sys.argv[1]))
pool = load.new_pool(1, 0)
before = kilobytes("VmRSS")
target = load.load_target(opened.config, opened.weights, pool, lambda count: None)
held = kilobytes("VmRSS") - before
print(held, target.inner.weight_bytes // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_leaves_no_file_in_memory():
    """Pages of the file are given back as soon as a tensor is packed. What remains besides the
    weights are small tables, the workspace for 128 rows, a few MB, and the last page of each
    tensor."""
    path = SHIPPED_FILE
    run = subprocess.run(
        [sys.executable, "-c", LOAD_AND_REPORT, str(path)],
        check=True,
        capture_output=True,
        text=True,
    )
    held, weights = map(int, run.stdout.split())
    tables = 8192 * (256 + 640) * 34 // 32 // 1024
    file = path.stat().st_size // 1024
    assert held < weights + tables + 6144 < weights + file


# Rows that stay in the file


@pytest.fixture
def no_small_tables(monkeypatch):
    monkeypatch.setattr(load, "SMALL_TABLE", 0)


def copied(dtype, folder):
    """The pair's files, to be damaged."""
    return [Path(shutil.copy(file, folder)) for file in files(dtype)]


def answer(pair):
    """Logits of a prompt in two pieces, and a draft."""
    tokens = pairs.tokens(140)
    cache = pair.target.new_cache(200, 4)
    pair.target.forward([Rows(cache=cache, token_ids=tokens[:133])])
    (output,) = pair.target.forward([Rows(cache=cache, token_ids=tokens[133:], num_outputs=7)])
    (draft,) = pair.drafter.draft([request(cache, output)])
    return output.logits.tobytes(), draft


def request(cache, output, last_token=9):
    return DraftRequest(
        last_token=last_token,
        hidden=output.hidden[-1],
        cache=cache,
        max_draft_tokens=4,
        draw=DrawRule(temperature=0.0, seed=0),
    )


@pytest.mark.parametrize("path", ["folder", "Q4_0", "Q8_0", "BF16", "F32"])
def test_rows_from_the_file_are_those_in_memory(path, monkeypatch):
    target = source().target.path if path == "folder" else files(path)[0]
    in_memory = answer(load_pair(target, threads=1))
    monkeypatch.setattr(load, "SMALL_TABLE", 0)
    assert answer(load_pair(target, threads=1)) == in_memory


def test_a_file_that_is_cut_short_is_an_error_and_no_crash(no_small_tables, tmp_path):
    file, _ = copied("Q8_0", tmp_path)
    pair = load_pair(file, threads=1)
    cache = pair.target.new_cache(40, 4)
    (output,) = pair.target.forward([Rows(cache=cache, token_ids=[5, 6], num_outputs=1)])
    os.truncate(file, 4096)
    message = rf"cannot read {re.escape(str(file))}: it is shorter .* restore it"
    with pytest.raises(CheckpointError, match=message):
        pair.target.forward([Rows(cache=cache, token_ids=[7, 8])])
    assert cache.length == 2
    with pytest.raises(CheckpointError, match=message):
        pair.drafter.draft([request(cache, output)])


def test_small_tables_need_no_file(tmp_path):
    file, _ = copied("Q8_0", tmp_path)
    pair = load_pair(file, threads=1)
    expected = answer(pair)
    os.truncate(file, 4096)
    assert answer(pair) == expected


def test_another_file_of_that_name_changes_nothing(no_small_tables, tmp_path):
    file, _ = copied("Q8_0", tmp_path)
    pair = load_pair(file, threads=1)
    expected = answer(pair)
    file_of_zeros(tmp_path, file.stat().st_size).replace(file)
    assert answer(pair) == expected


def file_of_zeros(folder, size):
    path = Path(folder, "zeros")
    path.write_bytes(bytes(size))
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_files_are_open_as_long_as_their_target(no_small_tables, tmp_path):
    file, drafter = copied("Q8_0", tmp_path)

    def opened():
        places = [os.path.realpath(place) for place in Path("/proc/self/fd").iterdir()]
        return places.count(str(file.resolve())), places.count(str(drafter.resolve()))

    pair = load_pair(file, threads=1)
    gc.collect()
    assert opened() == (2, 0)  # one for each table
    del pair
    gc.collect()
    assert opened() == (0, 0)


# Candidates


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    counts=st.lists(st.integers(0, 256), min_size=1, max_size=3),
    seed=st.integers(0, 5),
)
def test_candidates_are_the_best_of_the_row(counts, seed):
    """Each sequence of a pass gets at least as many as it asks for, in the sampler's order."""
    target = native_twins.native("e2b", "Q8_0").target
    rows = [
        Rows(
            cache=target.new_cache(8, 4),
            token_ids=pairs.tokens(4, seed + index),
            num_outputs=3,
            num_candidates=count,
        )
        for index, count in enumerate(counts)
    ]
    for share, output in zip(rows, target.forward(rows), strict=True):
        wanted = share.num_candidates
        for row, logits in enumerate(output.logits):
            expected = candidates_of(logits, wanted)
            assert output.candidate_ids[row, :wanted].tolist() == expected.token_ids.tolist()
            assert output.candidate_logits[row, :wanted].tolist() == expected.logits.tolist()
            found = [token_id for token_id in output.candidate_ids[row].tolist() if token_id >= 0]
            assert output.best_tokens(row) == found


@pytest.mark.parametrize("top_k", [1, 5, 64])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_sampler_chooses_alike_from_native_candidates(temperature, top_k):
    target = native_twins.native("12b", "Q4_0").target
    params = SamplingParams(temperature=temperature, top_k=top_k, logit_bias={7: -1.5, 8: 3.0})
    sampler = Sampler(
        params, vocab_size=target.config.vocab_size, seed=3, suppressed_token_ids=[11]
    )
    rows = Rows(
        cache=target.new_cache(130, 4),
        token_ids=pairs.tokens(120),
        num_outputs=120,
        num_candidates=sampler.num_candidates,
    )
    (output,) = target.forward([rows])
    candidates = map(Candidates, output.candidate_ids, output.candidate_logits)
    for position, (logits, found) in enumerate(zip(output.logits, candidates, strict=True)):
        assert found.holds(sampler.num_candidates)
        assert sampler.choose(logits, position, found) == sampler.choose(logits, position)


# The engine


def test_an_engine_answers_alike_alone_and_in_company():
    engine = Engine(native_pair(), kept_caches=0)
    prompts = ["What is the capital of France?", "def add(a, b):", "List three colours."]
    settings_of = {"sampling": SamplingParams(seed=4), "max_tokens": 20}
    together = engine.generate_batch(prompts, **settings_of)
    alone = [engine.generate(prompt, **settings_of) for prompt in prompts]
    assert [x.token_ids for x in together] == [x.token_ids for x in alone]


def test_the_instruction_set_has_a_name():
    assert _native.isa_name() in _native.isa_names()
    assert _native.isa_names()[0] == "portable"
