"""The extension module: what it refuses, and who owns the memory. Its arithmetic is tested in
native/tests and by the tests of the native runtime."""

from __future__ import annotations

import ast
import gc
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import paceline
from paceline import _native
from paceline.checkpoint.names import drafter_table, target_table
from paceline.config import DrafterConfig, TargetConfig

GEOMETRY = {
    "hidden_size": 32,
    "vocab_size": 64,
    "layer_kinds": ("sliding", "global"),
    "num_heads": 2,
    "num_kv_heads": 1,
    "num_global_kv_heads": 1,
    "head_dim": 16,
    "global_head_dim": 32,
    "ffn_size": 64,
    "sliding_window": 8,
    "context_length": 512,
}
TARGET = TargetConfig(**GEOMETRY, per_layer_size=32, per_layer_vocab_size=64)
DRAFTER = DrafterConfig(**GEOMETRY, target_hidden_size=32, num_centroids=8, centroid_top_k=2)


@pytest.fixture(scope="module")
def pool():
    return _native.Pool(2, pin=False)


def shape_of(config, **others):
    layers = [
        _native.LayerShape(
            sliding=layer.kind == "sliding",
            head_dim=layer.head_dim,
            num_kv_heads=layer.num_kv_heads,
            ffn_size=layer.ffn_size,
            owns_kv=layer.owns_kv,
            kv_layer=index,
            window=layer.window or 0,
        )
        for index, layer in enumerate(config.layers)
    ]
    return _native.Shape(
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        num_heads=config.num_heads,
        rms_norm_eps=1e-6,
        layers=layers,
        first_shared_layer=config.first_shared_layer,
        sliding_frequencies=[0.5] * (config.head_dim // 2),
        global_frequencies=[0.5] * (config.global_head_dim // 2),
        **others,
    )


def tensors(table):
    random = np.random.default_rng(0)
    for spec in table.specs:
        if spec.kind == "token_ordering":
            yield spec.name, "I64", np.arange(spec.shape[0])
        else:
            yield spec.name, "F32", random.normal(size=spec.shape).astype(np.float32)


def fill(model, table):
    for name, dtype, array in tensors(table):
        model.load(name, dtype, array.reshape(-1).view(np.uint8))
    model.finish()
    return model


def new_target(pool):
    shape = shape_of(TARGET, per_layer_size=32, per_layer_vocab_size=64)
    return _native.Target(pool, shape)


def new_drafter(pool, target):
    shape = shape_of(DRAFTER, target_hidden_size=32, num_centroids=8, centroid_top_k=2)
    return _native.Drafter(pool, shape, target)


@pytest.fixture(scope="module")
def target(pool):
    return fill(new_target(pool), target_table(TARGET))


@pytest.fixture(scope="module")
def drafter(pool, target):
    return fill(new_drafter(pool, target), drafter_table(DRAFTER))


def forward(target, cache, tokens, num_outputs=1, num_candidates=0):
    return target.forward([cache], [tokens], [num_outputs], [num_candidates])[0]


def arrays_of(output):
    hidden = [row.numpy() for row in output.hidden]
    return [output.logits, *hidden, output.candidate_ids, output.candidate_logits]


NOTHING = np.zeros(0, np.int64)
DRAFT = {
    "last_token": 3,
    "hidden": np.zeros(32, np.float32),
    "max_draft_tokens": 3,
    "place": 2,
    "temperature": 0.0,
    "seed": 1,
    "bias_ids": NOTHING,
    "biases": np.zeros(0),
    "min_confidences": [],
    "end_token_ids": NOTHING,
}


def draft(drafter, cache, **changes):
    settings = DRAFT | changes
    return drafter.draft(cache, **settings | {"hidden": _native.Hidden(settings["hidden"])})


# --- instruction sets and threads


@pytest.mark.parametrize("isa", _native.isa_names())
def test_every_instruction_set_can_be_forced(isa):
    assert run_with_isa(isa).stdout.strip() == isa


def test_an_unknown_instruction_set_is_refused_by_name():
    result = run_with_isa("mmx")
    assert "ValueError: instruction set 'mmx'" in result.stderr
    assert "portable" in result.stderr


def run_with_isa(isa):
    code = "from paceline import _native; print(_native.isa_name())"
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PACELINE_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("threads", [0, -1, 1025])
def test_impossible_numbers_of_threads(threads):
    with pytest.raises(ValueError, match=rf"threads={threads} is out of range: expected 1 to 1024"):
        _native.Pool(threads)


def test_reading_memory(pool):
    assert pool.threads == 2
    assert _native.read_bandwidth(pool, 1 << 16) > 0
    with pytest.raises(ValueError, match="num_bytes=0 is out of range"):
        _native.read_bandwidth(pool, 0)


def test_products_from_the_cache(pool):
    assert _native.product_rate(pool, "Q4_0", 4) > 0
    with pytest.raises(ValueError, match="num_rows=0 is out of range"):
        _native.product_rate(pool, "Q4_0", 0)
    with pytest.raises(ValueError, match="Q5_0"):
        _native.product_rate(pool, "Q5_0", 1)


# --- one linear layer


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_multiply(rows):
    random = np.random.default_rng(1)
    weights = random.normal(size=(20, 32)).astype(np.float32)
    x = random.normal(size=(rows, 32)).astype(np.float32)
    y = _native.multiply("F32", weights.reshape(-1).view(np.uint8), 20, 32, x)
    # One rounding per product and sum: 32 steps on sums below 32.
    np.testing.assert_allclose(y, x @ weights.T, atol=32 * 32 * 2.0**-24)


@pytest.mark.parametrize(
    ("dtype", "size", "outputs", "inner", "columns", "message"),
    [
        ("Q5_K", 64, 2, 8, 8, "dtype 'Q5_K' is unknown"),
        ("F32", 63, 2, 8, 8, "has 63 bytes, its shape implies 64"),
        ("F32", 64, 0, 8, 8, "at least one output"),
        ("F32", 64, 2, -8, 8, "at least one output"),
        ("Q4_0", 18, 1, 31, 31, "do not divide into blocks of 32"),
        ("F32", 64, 2, 8, 7, "x has 7 columns, the matrix 8"),
        ("F32", 64, 2**31 - 1, 2**31 - 1, 8, "has 64 bytes"),
    ],
)
def test_multiply_refuses(dtype, size, outputs, inner, columns, message):
    data, x = np.zeros(size, np.uint8), np.zeros((2, columns), np.float32)
    with pytest.raises(ValueError, match=message):
        _native.multiply(dtype, data, outputs, inner, x)


@pytest.mark.parametrize(
    ("data", "x"),
    [
        (np.zeros(16, np.float32), np.zeros((1, 8), np.float32)),
        (np.zeros((8, 8), np.uint8), np.zeros((1, 8), np.float32)),
        (np.zeros(128, np.uint8)[::2], np.zeros((1, 8), np.float32)),
        (np.zeros(64, np.uint8), np.zeros((1, 8), np.float64)),
        (np.zeros(64, np.uint8), np.zeros((8, 1), np.float32).T.repeat(2, 0).T),
        (np.zeros(64, np.uint8), np.zeros((8, 2), np.float32).T),
        (None, np.zeros((1, 8), np.float32)),
    ],
)
def test_arrays_are_never_converted(data, x):
    with pytest.raises((TypeError, ValueError)):
        _native.multiply("F32", data, 2, 8, x)


# --- weights


@pytest.mark.parametrize(
    ("name", "dtype", "array", "message"),
    [
        ("layers.9.layer_scalar", "F32", np.ones(1, np.float32), "layers.9"),
        ("norm.weight", "F32", np.ones(31, np.float32), "norm.weight"),
        ("norm.weight", "F64", np.ones(32, np.float64), "F64"),
        ("embed_tokens.weight", "I64", np.ones((64, 32), np.int64), "I64"),
    ],
)
def test_tensors_that_do_not_fit(pool, name, dtype, array, message):
    with pytest.raises(ValueError, match=message):
        new_target(pool).load(name, dtype, array.reshape(-1).view(np.uint8))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["norm.weight", "embed_tokens.weight"])
def test_weights_that_are_not_finite(pool, name, value):
    shape = next(spec.shape for spec in target_table(TARGET).specs if spec.name == name)
    array = np.ones(shape, np.float32)
    array.reshape(-1)[-1] = value
    with pytest.raises(_native.NotFiniteError) as caught:
        new_target(pool).load(name, "F32", array.reshape(-1).view(np.uint8))
    assert isinstance(caught.value, ValueError)


def test_what_is_missing_is_named(pool, target):
    for model in (new_target(pool), new_drafter(pool, target)):
        with pytest.raises(ValueError, match="more were not loaded"):
            model.finish()


def test_nothing_runs_before_it_is_complete(pool, target):
    empty = new_target(pool)
    with pytest.raises(ValueError, match="finish"):
        forward(empty, empty.new_cache(8, 0), [1])
    cache = target.new_cache(8, 0)
    forward(target, cache, [1, 2])
    with pytest.raises(ValueError, match="finish"):
        draft(new_drafter(pool, target), cache)
    hasty = fill(new_drafter(pool, empty), drafter_table(DRAFTER))
    with pytest.raises(ValueError, match="no weights yet"):
        draft(hasty, empty.new_cache(8, 0))


@settings(max_examples=200, deadline=None)
@given(
    name=st.sampled_from([spec.name for spec in target_table(TARGET).specs]),
    dtype=st.sampled_from(["F32", "F16", "BF16", "Q4_0", "Q8_0", "I64", ""]),
    data=st.binary(max_size=200),
)
def test_any_bytes_are_taken_or_refused(name, dtype, data):
    model = new_target(_native.Pool(1))
    try:
        model.load(name, dtype, np.frombuffer(data, np.uint8))
    except ValueError:
        return
    assert data


# --- passes


def test_a_pass_and_its_arrays_outlive_their_makers(pool):
    target = fill(new_target(pool), target_table(TARGET))
    gc.collect()  # the rows that the target reads on demand must not go with their arrays
    cache = target.new_cache(100, 4)
    arrays = arrays_of(forward(target, cache, [1, 2, 3], 2, 5))
    assert [array.shape for array in arrays] == [(2, 64), (1, 32), (1, 32), (2, 5), (2, 5)]
    assert cache.length == 3
    copies = [array.copy() for array in arrays]
    del target, cache
    gc.collect()
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)
        assert array.flags.writeable
    logits, _, _, candidates, scores = arrays
    np.testing.assert_array_equal(candidates[0], np.argsort(-logits[0], kind="stable")[:5])
    np.testing.assert_array_equal(scores, np.take_along_axis(logits, candidates, 1))


def test_a_pass_without_outputs(target):
    cache = target.new_cache(100, 4)
    output = forward(target, cache, [1, 2, 3], 0)
    assert [array.shape for array in arrays_of(output)] == [(0, 64), (0, 0), (0, 0)]
    with pytest.raises(ValueError, match="row=0 is out of range"):
        output.best_tokens(0)
    assert target.forward([], [], [], []) == []


def test_sequences_want_different_things(target):
    first, second = target.new_cache(100, 4), target.new_cache(100, 4)
    one, other = target.forward([first, second], [[1], [2, 3, 4]], [1, 2], [2, 0])
    assert (one.logits.shape, other.logits.shape) == ((1, 64), (2, 64))
    assert other.candidate_ids.tolist() == [[-1, -1], [-1, -1]]
    assert other.best_tokens(0) == other.best_tokens(1) == []
    assert one.best_tokens(0) == one.candidate_ids[0].tolist()
    assert (one.candidate_ids >= 0).all()
    assert (one.candidate_logits.shape, other.candidate_logits.shape) == ((1, 2), (2, 2))
    assert (first.length, second.length) == (1, 3)


@pytest.mark.parametrize(
    ("token_ids", "outputs", "candidates", "message"),
    [
        ([[1, 64]], [1], [0], "64"),
        ([[-1]], [1], [0], "-1"),
        ([[]], [0], [0], "number of token_ids=0"),
        ([[1]], [2], [0], "num_outputs=2 is out of range: expected 0 to 1"),
        ([[1]], [-1], [0], "num_outputs=-1"),
        ([[1]], [1], [-1], "num_candidates=-1"),
        ([[1]], [1], [100_000], "num_candidates=100000"),
        ([[1], [1]], [1], [0], "must be equally long, got 1, 2, 1 and 1"),
        ([[1]], [1], [], "must be equally long"),
        ([[1] * 9], [1], [0], "8"),  # more than the cache holds
    ],
)
def test_impossible_passes(target, token_ids, outputs, candidates, message):
    cache = target.new_cache(8, 0)
    with pytest.raises(ValueError, match=message):
        target.forward([cache], token_ids, outputs, candidates)
    assert cache.length == 0


def test_caches_of_others(pool, target, drafter):
    cache = target.new_cache(8, 0)
    stranger = fill(new_target(pool), target_table(TARGET)).new_cache(8, 0)
    for wrong in (stranger, None):
        with pytest.raises((ValueError, TypeError)):
            forward(target, wrong, [1])
    with pytest.raises(ValueError, match="share"):
        target.forward([cache, cache], [[1], [2]], [1, 1], [0, 0])
    with pytest.raises(ValueError, match="another target"):
        draft(drafter, stranger)


@pytest.mark.parametrize("token_ids", [[1, 2], ["12"], [[1.5]], [[1 << 31]], [None]])
def test_token_ids_of_another_type(target, token_ids):
    with pytest.raises(TypeError):
        target.forward([target.new_cache(8, 0)], token_ids, [1], [0])


# --- caches


def test_a_cache(target):
    cache = target.new_cache(100, 4)
    assert (cache.length, cache.max_length) == (0, 100)
    forward(target, cache, range(10))
    keys, values = cache.read(1, 2, 9)
    assert keys.shape == values.shape == (1, 8, 32)
    assert keys.any()
    assert cache.kv_bytes > 0
    cache.truncate(7)
    assert cache.length == 7
    with pytest.raises(ValueError, match="9"):
        cache.truncate(9)
    assert cache.read(0, 0, 6)[0].shape == (1, 7, 16)


@pytest.mark.parametrize(
    ("layer", "first", "last", "message"),
    [
        (2, 0, 0, "layer=2"),
        (-1, 0, 0, "layer=-1"),
        (0, 0, 3, "last=3"),
        (0, 2, 1, "first=2"),
        (0, -1, 1, "first=-1"),
    ],
)
def test_positions_that_a_cache_does_not_hold(target, layer, first, last, message):
    cache = target.new_cache(100, 4)
    forward(target, cache, [1, 2, 3])
    with pytest.raises(ValueError, match=message):
        cache.read(layer, first, last)


def test_positions_that_a_ring_has_forgotten(target):
    cache = target.new_cache(512, 0)
    forward(target, cache, [1] * 400)
    with pytest.raises(ValueError, match="first=0 is out of range"):
        cache.read(0, 0, 399)
    assert cache.read(1, 0, 399)[0].shape == (1, 400, 32)


@pytest.mark.parametrize(("length", "slack"), [(0, 0), (-1, 0), (2**40, 0), (8, -1), (8, 2**40)])
def test_impossible_caches(target, length, slack):
    with pytest.raises(ValueError, match="is out of range"):
        target.new_cache(length, slack)


# --- drafts


def test_a_draft(target, drafter):
    cache = target.new_cache(100, 4)
    [hidden] = forward(target, cache, [1, 2, 3]).hidden[0].numpy()
    tokens, confidences = draft(drafter, cache, hidden=hidden)
    assert len(tokens) == len(confidences) == 3
    assert all(0 <= token < 64 for token in tokens)
    assert cache.length == 3
    end = np.array(tokens[:1], np.int64)
    assert draft(drafter, cache, hidden=hidden, end_token_ids=end)[0] == tokens[:1]
    assert draft(drafter, cache, max_draft_tokens=0) == ([], [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"last_token": 64}, "64"),
        ({"last_token": -1}, "-1"),
        ({"hidden": np.zeros(31, np.float32)}, "hidden has 31 numbers"),
        ({"max_draft_tokens": -1}, "-1"),
        ({"max_draft_tokens": 10_000}, "10000"),
        ({"place": -1}, "place=-1"),
        ({"place": 2**40}, "place="),
        ({"temperature": -1.0}, "temperature=-1"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": float("inf")}, "temperature=inf"),
        ({"bias_ids": np.array([64]), "biases": np.ones(1)}, "64"),
        ({"bias_ids": np.array([1]), "biases": np.ones(2)}, "2 biases"),
    ],
)
def test_impossible_drafts(target, drafter, changes, message):
    cache = target.new_cache(8, 0)
    forward(target, cache, [1, 2])
    with pytest.raises(ValueError, match=message):
        draft(drafter, cache, **changes)


def test_a_draft_needs_a_position(target, drafter):
    with pytest.raises(ValueError, match="empty"):
        draft(drafter, target.new_cache(8, 0))


@pytest.mark.parametrize("changes", [{"target_hidden_size": 64}, {"num_centroids": 7}])
def test_drafters_that_do_not_fit(pool, target, changes):
    sizes = {"target_hidden_size": 32, "num_centroids": 8, "centroid_top_k": 2} | changes
    with pytest.raises(ValueError, match=r"\w"):
        _native.Drafter(pool, shape_of(DRAFTER, **sizes), target)


def test_an_exception_while_objects_live_says_nothing_of_them():
    """A thread that still waits keeps what it holds, and nanobind would list all of it."""
    code = (
        "import threading\n"
        "from paceline import _native\n"
        "held = threading.Event()\n"
        "def hold(pool):\n"
        "    held.set()\n"
        "    threading.Event().wait()\n"
        "threading.Thread(target=hold, args=[_native.Pool(1)], daemon=True).start()\n"
        "held.wait()\n"
        "raise RuntimeError('stop')"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.endswith("RuntimeError: stop\n")
    assert "nanobind" not in result.stderr


# --- the types


def test_the_types_are_those_of_the_module(tmp_path):
    """After a change of native/bindings/: make stub."""
    written = tmp_path / "written.pyi"
    command = [sys.executable, "-m", "nanobind.stubgen", "-q", "-m", "paceline._native"]
    subprocess.run([*command, "-o", str(written)], check=True)
    committed = Path(paceline.__file__).with_name("_native.pyi")
    assert signatures(written) == signatures(committed)


def signatures(stub):
    """Names with their arguments, by class; how a type is spelled may change with nanobind."""
    return set(_signatures(ast.parse(stub.read_text(encoding="utf-8")).body, ""))


def _signatures(body, prefix):
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield prefix + node.name
            yield from _signatures(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef):
            names = [x.arg for x in (*node.args.args, *node.args.kwonlyargs)]
            yield f"{prefix}{node.name}({', '.join(names)})"
