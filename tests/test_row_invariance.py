"""Contract C1: a row's bits depend on its own tokens, and on nothing that shares the pass.

Logits, hidden states and cache are compared bit for bit against feeding one token at a time.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import geometries
import pairs
from paceline.config import TargetConfig
from paceline.runtime.protocols import Rows
from paceline.runtime.torch import target as target_module
from paceline.runtime.torch.models import TargetModel
from paceline.runtime.torch.packed import PackedLinear, can_pack, pack_linears
from paceline.runtime.torch.target import TILE, TorchTarget, pack_tiles

LENGTH = 144  # through the wrap of a ring of 128 slots
DTYPES = ("float32", "bfloat16")
FEW = settings(max_examples=2, deadline=None, derandomize=True)
CASES = [(name, dtype) for name in geometries.NAMES for dtype in DTYPES]

# Wide enough that PyTorch shares its products out over threads.
WIDE = TargetConfig(
    hidden_size=512,
    vocab_size=2048,
    layer_kinds=("sliding", "global", "sliding", "global"),
    num_kv_shared_layers=2,
    num_heads=8,
    num_kv_heads=2,
    num_global_kv_heads=2,
    head_dim=64,
    global_head_dim=128,
    ffn_size=2048,
    sliding_window=16,
    context_length=256,
    per_layer_size=32,
    per_layer_vocab_size=2048,
    logit_softcap=30.0,
)


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(torch.int32 if x.dtype == torch.float32 else torch.int16)


def same(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Equal in every bit: a zero's sign counts too."""
    return torch.equal(bits(first), bits(second))


@contextmanager
def threads(count: int):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def sequences(seed: int) -> list[int]:
    return pairs.tokens(LENGTH, seed)


@cache
def one_by_one(name: str, dtype: str, seed: int = 0):
    """Logits, hidden states and cache of plain decoding."""
    target = pairs.load(name, dtype).target
    kv_cache = target.new_cache(LENGTH, 8)
    outputs = pairs.feed(target, kv_cache, sequences(seed), [1] * LENGTH)
    return pairs.logits_of(outputs), pairs.hidden_of(outputs), kv_cache


def same_caches(first, second, window: int) -> bool:
    """All that a later row can see: everything on global layers, the window on sliding ones."""
    assert first.length == second.length
    last = first.length - 1
    for index, store in first.layers.items():
        lowest = max(0, last - window + 1) if store.is_ring else 0
        ours, theirs = store.read(lowest, last), second.layers[index].read(lowest, last)
        if not all(same(x, y) for x, y in zip(ours, theirs, strict=True)):
            return False
    return True


def splits(total: int, largest: int = 16):
    """Pass sizes from 1 to 16 that add up to `total`."""

    def cut(sizes: list[int]) -> list[int]:
        passes, left = [], total
        for size in sizes:
            passes.append(min(size, left))
            left -= passes[-1]
            if not left:
                break
        return passes + [1] * left

    return st.lists(st.integers(1, largest), min_size=total // 4, max_size=total // 2).map(cut)


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_every_row_count_gives_the_same_bits(name, dtype):
    """All counts from 1 to 16, in one tile and in two, at the ring's wrap."""
    logits, hidden, _ = one_by_one(name, dtype)
    target = pairs.load(name, dtype).target
    kv_cache = target.new_cache(LENGTH, 16)
    pairs.feed(target, kv_cache, sequences(0)[:128], [128], all_outputs=False)
    for count in range(1, 17):
        output = pairs.feed(target, kv_cache, sequences(0)[128 : 128 + count], [count])
        assert same(pairs.logits_of(output), logits[128 : 128 + count])
        assert same(pairs.hidden_of(output), hidden[128 : 128 + count])
        kv_cache.truncate(128)


@pytest.mark.parametrize(("name", "dtype"), CASES)
@FEW
@given(data=st.data())
def test_every_split_into_passes_gives_the_same_bits(name, dtype, data):
    logits, hidden, plain_cache = one_by_one(name, dtype)
    target = pairs.load(name, dtype).target
    kv_cache = target.new_cache(LENGTH, 16)
    outputs = pairs.feed(target, kv_cache, sequences(0), data.draw(splits(LENGTH)))
    assert same(pairs.logits_of(outputs), logits)
    assert same(pairs.hidden_of(outputs), hidden)
    assert same_caches(kv_cache, plain_cache, target.config.sliding_window)


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_prefill_without_outputs_leaves_the_same_cache(name, dtype):
    _, _, plain_cache = one_by_one(name, dtype)
    target = pairs.load(name, dtype).target
    kv_cache = target.new_cache(LENGTH, 8)
    rows = Rows(cache=kv_cache, token_ids=sequences(0), num_outputs=0)
    (output,) = target.forward([rows])
    assert output.logits.shape == (0, target.config.vocab_size)
    assert len(output.hidden) == 0
    assert same_caches(kv_cache, plain_cache, target.config.sliding_window)


@pytest.mark.parametrize(("name", "dtype"), CASES)
@FEW
@given(data=st.data())
def test_neighbours_change_no_bit(name, dtype, data):
    """Three sequences of different ages share every pass, in any shares and any order."""
    target = pairs.load(name, dtype).target
    plain = [one_by_one(name, dtype, seed) for seed in range(3)]
    caches = [target.new_cache(LENGTH, 16) for _ in plain]
    starts = [data.draw(st.integers(80, 140)) for _ in plain]
    for seed, (kv_cache, start) in enumerate(zip(caches, starts, strict=True)):
        pairs.feed(target, kv_cache, sequences(seed)[:start], [start], all_outputs=False)
    while unfinished := [i for i in range(3) if caches[i].length < LENGTH]:
        order = data.draw(st.permutations(unfinished))
        rows, spans = [], []
        for i in order:
            begin = caches[i].length
            end = min(LENGTH, begin + data.draw(st.integers(1, 16)))
            spans.append((i, begin, end))
            rows.append(
                Rows(
                    cache=caches[i],
                    token_ids=sequences(i)[begin:end],
                    num_outputs=end - begin,
                )
            )
        for (i, begin, end), output in zip(spans, target.forward(rows), strict=True):
            assert same(pairs.logits_of([output]), plain[i][0][begin:end])
            assert same(pairs.hidden_of([output]), plain[i][1][begin:end])
    for kv_cache, (_, _, plain_cache) in zip(caches, plain, strict=True):
        assert same_caches(kv_cache, plain_cache, target.config.sliding_window)


@cache
def wide_target(dtype: str, packed: bool) -> TorchTarget:
    torch.manual_seed(0)
    model = TargetModel(WIDE).requires_grad_(False).to(getattr(torch, dtype))
    if not packed:
        return TorchTarget(model)
    pack_linears(model, TILE)
    return TorchTarget(model, head=PackedLinear(model.embed_tokens.weight, TILE))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_change_no_bit(dtype, packed):
    """Shapes that are large enough to be shared out, with 1 and 2 threads."""
    if packed and not can_pack(getattr(torch, dtype)):
        pytest.skip("this machine has no packed kernels")
    target = wide_target(dtype, packed)
    token_ids = [int(x) for x in torch.randint(3, 2048, (30,))]
    results = []
    for count, sizes in ((1, [1] * 30), (2, [1] * 3 + [27]), (2, [16, 5, 9])):
        kv_cache = target.new_cache(200, 16)
        with threads(count):
            outputs = pairs.feed(target, kv_cache, token_ids, sizes)
        results.append((pairs.logits_of(outputs), pairs.hidden_of(outputs), kv_cache))
    for logits, hidden, kv_cache in results[1:]:
        assert same(logits, results[0][0])
        assert same(hidden, results[0][1])
        assert same_caches(kv_cache, results[0][2], WIDE.sliding_window)


def test_passes_without_padding_would_move_bits(monkeypatch):
    """The planted bug: a tile as large as its pass."""
    generator = torch.Generator().manual_seed(0)
    tile, weight = (
        torch.randn(8, 512, generator=generator),
        torch.randn(96, 512, generator=generator),
    )
    products = [torch.nn.functional.linear(x, weight)[0] for x in (tile, tile[:1])]
    if same(*products):
        pytest.skip("this processor's library rounds all row counts alike")
    target = wide_target("float32", False)
    logits = []
    for size in (TILE, 1):
        monkeypatch.setattr(target_module, "TILE", size)
        outputs = pairs.feed(target, target.new_cache(LENGTH, 8), list(range(3, 11)), [1] * 8)
        logits.append(pairs.logits_of(outputs))
    assert not same(*logits)


def test_packed_layers_hold_the_same_weights_and_agree():
    """Two orders of the same 512 products: within 512 roundings of the sum of their sizes."""
    if not can_pack(torch.float32):
        pytest.skip("this machine has no packed kernels")
    plain, packed = wide_target("float32", False).model, wide_target("float32", True).model
    assert plain.state_dict().keys() == packed.state_dict().keys()
    for name, tensor in packed.state_dict().items():
        assert same(tensor, plain.state_dict()[name])
    x, weight = torch.randn(5, 512), plain.layers[0].mlp.up_proj.weight
    error = (packed.layers[0].mlp.up_proj(x) - x @ weight.T).abs()
    assert bool((error <= 512 * 2.0**-23 * (x.abs() @ weight.T.abs())).all())


def test_tiles_are_filled_in_order_and_cut_at_their_end():
    target = pairs.load("e2b").target
    caches = [target.new_cache(LENGTH, 8) for _ in range(3)]
    rows = [
        Rows(cache=caches[0], token_ids=range(5), num_outputs=2),
        Rows(cache=caches[1], token_ids=range(10), num_outputs=9),
        Rows(cache=caches[2], token_ids=range(1), num_outputs=0),
    ]
    tiles = [
        [(s.source, s.start, s.offset, list(s.token_ids), s.num_outputs) for s in tile]
        for tile in pack_tiles(rows)
    ]
    assert tiles == [
        [(0, 0, 0, [0, 1, 2, 3, 4], 2), (1, 0, 5, [0, 1, 2], 2)],
        [(1, 3, 0, [3, 4, 5, 6, 7, 8, 9], 7), (2, 0, 7, [0], 0)],
    ]


@pytest.mark.parametrize("columns", [16, 384, 1024, 1536])
def test_padding_and_place_change_no_bit_of_a_product(columns):
    """What the tiles rest on: for one shape, neither a row's place nor its neighbours count."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(640, columns, generator=generator)
    row = torch.randn(columns, generator=generator)
    results = []
    for place in range(TILE):
        tile = torch.randn(TILE, columns, generator=generator)
        tile[place] = row
        results.append(torch.nn.functional.linear(tile, weight)[place])
    assert all(same(x, results[0]) for x in results)
