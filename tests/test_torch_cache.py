"""Contract C4: a round leaves no trace in the KV cache, through the wrap of the sliding rings."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pairs
from paceline.config import ConfigError, LayerSpec, TargetConfig
from paceline.errors import CacheError
from paceline.runtime.protocols import Rows
from paceline.runtime.torch.cache import BLOCK, LayerStore
from paceline.runtime.torch.models import TargetModel
from paceline.runtime.torch.target import TorchTarget

MAX_DRAFT = 8
LENGTH = 300  # a ring here has 192 slots
CONFIG = TargetConfig(
    hidden_size=32,
    vocab_size=96,
    layer_kinds=("sliding", "global", "sliding", "global"),
    num_kv_shared_layers=2,
    num_heads=4,
    num_kv_heads=2,
    num_global_kv_heads=2,
    head_dim=16,
    global_head_dim=32,
    ffn_size=48,
    sliding_window=BLOCK,  # so that a ring of exactly `window` slots can be built
    context_length=512,
    per_layer_size=8,
    per_layer_vocab_size=96,
    logit_softcap=30.0,
)
TEXT = [3 + token % 90 for token in pairs.tokens(LENGTH, seed=9)]


@cache
def small_target(dtype: str = "float32") -> TorchTarget:
    torch.manual_seed(1)
    return TorchTarget(TargetModel(CONFIG).requires_grad_(False).to(getattr(torch, dtype)))


@cache
def plain_logits(dtype: str = "float32") -> torch.Tensor:
    kv_cache = small_target(dtype).new_cache(LENGTH, MAX_DRAFT)
    return pairs.logits_of(pairs.feed(small_target(dtype), kv_cache, TEXT, [1] * LENGTH))


def visible_of(kv_cache) -> list[torch.Tensor]:
    """What a next row could see: global layers whole, sliding ones a window back."""
    last = kv_cache.length - 1
    return [
        stored
        for store in kv_cache.layers.values()
        for stored in store.read(max(0, last - BLOCK + 2) if store.is_ring else 0, last)
    ]


def equals_fresh_pass(kv_cache, dtype: str = "float32") -> bool:
    fresh = small_target(dtype).new_cache(LENGTH, MAX_DRAFT)
    rows = Rows(cache=fresh, token_ids=TEXT[: kv_cache.length], num_outputs=0)
    small_target(dtype).forward([rows])
    pairwise = zip(visible_of(kv_cache), visible_of(fresh), strict=True)
    return all(torch.equal(x, y) for x, y in pairwise)


def run_round(target, kv_cache, num_draft: int, num_accepted: int) -> torch.Tensor:
    """Verify a draft that follows the text for `num_accepted` tokens; logits of what is kept."""
    start = kv_cache.length
    true = TEXT[start : start + 1 + num_draft]
    draft = true[: 1 + num_accepted] + [3 + (x + 11) % 90 for x in true[1 + num_accepted :]]
    (output,) = target.forward([Rows(cache=kv_cache, token_ids=draft, num_outputs=len(draft))])
    kv_cache.truncate(start + 1 + num_accepted)
    return torch.from_numpy(output.logits[: 1 + num_accepted])


@st.composite
def rounds(draw):
    """(draft length, accepted) pairs that end near the end of the text."""
    left, result = LENGTH - MAX_DRAFT - 1, []
    while left > 0:
        num_draft = draw(st.integers(0, MAX_DRAFT))
        num_accepted = draw(st.integers(0, num_draft))
        result.append((num_draft, num_accepted))
        left -= 1 + num_accepted
    return result


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@settings(max_examples=5, deadline=None, derandomize=True)
@given(data=st.data())
def test_random_rounds_leave_no_trace(dtype, data):
    target = small_target(dtype)
    kv_cache = target.new_cache(LENGTH, MAX_DRAFT)
    kept = [run_round(target, kv_cache, *plan) for plan in data.draw(rounds())]
    assert torch.equal(torch.cat(kept), plain_logits(dtype)[: kv_cache.length])
    assert equals_fresh_pass(kv_cache, dtype)


@pytest.mark.parametrize("start", [70, 127, 128, 191, 192, 255, 280])
@pytest.mark.parametrize("num_accepted", [0, 3, MAX_DRAFT])
def test_one_round_at_the_edges_of_blocks_and_rings(start, num_accepted):
    target = small_target()
    kv_cache = target.new_cache(LENGTH, MAX_DRAFT)
    pairs.feed(target, kv_cache, TEXT[:start], [start], all_outputs=False)
    for _ in range(3):  # rejected drafts, over and over in the same place
        run_round(target, kv_cache, MAX_DRAFT, 0)
        kv_cache.truncate(start)
    kept = run_round(target, kv_cache, MAX_DRAFT, num_accepted)
    assert torch.equal(kept, plain_logits()[start : kv_cache.length])
    assert equals_fresh_pass(kv_cache)


def with_ring_slots(kv_cache, slots: int):
    """The planted bug: sliding rings of another size."""
    for spec in CONFIG.layers:
        if spec.index in kv_cache.layers and spec.kind == "sliding":
            kv_cache.layers[spec.index] = LayerStore(spec, slots, LENGTH, torch.float32)
    return kv_cache


@pytest.mark.parametrize(("slots", "survives"), [(BLOCK, False), (2 * BLOCK + MAX_DRAFT + 1, True)])
def test_a_ring_of_exactly_the_window_is_caught(slots, survives):
    """Rejected drafts overwrite keys that are visible again afterwards (reference 4.6)."""
    target = small_target()
    kv_cache = with_ring_slots(target.new_cache(LENGTH, MAX_DRAFT), slots)
    kept = [run_round(target, kv_cache, MAX_DRAFT, 2) for _ in range(60)]
    assert kv_cache.length == 180
    assert torch.equal(torch.cat(kept), plain_logits()[:180]) is survives
    assert equals_fresh_pass(kv_cache) is survives


def test_a_truncation_as_far_back_as_allowed_loses_nothing():
    target = small_target()
    kv_cache = target.new_cache(LENGTH, MAX_DRAFT)
    pairs.feed(target, kv_cache, TEXT[:290], [290], all_outputs=False)
    shortest = kv_cache.shortest_truncation
    assert shortest == 290 - 192 + BLOCK - 1
    kv_cache.truncate(shortest)
    assert equals_fresh_pass(kv_cache)
    again = pairs.feed(target, kv_cache, TEXT[shortest:], [LENGTH - shortest])
    assert torch.equal(pairs.logits_of(again), plain_logits()[shortest:])


def test_a_truncation_beyond_what_the_rings_hold_is_refused():
    target = small_target()
    kv_cache = target.new_cache(LENGTH, MAX_DRAFT)
    pairs.feed(target, kv_cache, TEXT[:290], [290], all_outputs=False)
    with pytest.raises(CacheError, match=r"truncate the KV cache to 160: .* reach back to 161"):
        kv_cache.truncate(160)
    with pytest.raises(CacheError, match="it holds 290 positions"):
        kv_cache.truncate(291)
    assert kv_cache.length == 290
    # What was overwritten stays overwritten, however short the text has become meanwhile.
    kv_cache.truncate(170)
    assert kv_cache.shortest_truncation == 161
    kv_cache.truncate(0)
    assert (kv_cache.length, kv_cache.shortest_truncation) == (0, 0)
    pairs.feed(target, kv_cache, TEXT[:100], [100], all_outputs=False)
    assert equals_fresh_pass(kv_cache)


def test_any_truncation_is_allowed_while_nothing_is_overwritten():
    target = small_target()
    kv_cache = target.new_cache(LENGTH, MAX_DRAFT)
    pairs.feed(target, kv_cache, TEXT[:192], [192], all_outputs=False)
    assert kv_cache.shortest_truncation == 0
    kv_cache.truncate(1)
    again = pairs.feed(target, kv_cache, TEXT[1:20], [19])
    assert torch.equal(pairs.logits_of(again), plain_logits()[1:20])


def test_a_pass_that_does_not_fit_changes_no_cache():
    target = small_target()
    roomy, full = target.new_cache(LENGTH, MAX_DRAFT), target.new_cache(10, MAX_DRAFT)
    pairs.feed(target, roomy, TEXT[:60], [60], all_outputs=False)
    pairs.feed(target, full, TEXT[:9], [9], all_outputs=False)
    with pytest.raises(CacheError, match=r"11 positions do not fit: .* made for 10"):
        target.forward(
            [Rows(cache=roomy, token_ids=TEXT[60:70]), Rows(cache=full, token_ids=TEXT[9:11])]
        )
    assert (roomy.length, full.length) == (60, 9)
    assert equals_fresh_pass(roomy)


def test_a_cache_takes_only_what_it_needs():
    """Rings have their size from the first day; tables grow with the text."""
    target = small_target()
    kv_cache = target.new_cache(LENGTH, MAX_DRAFT)
    sizes = {16: 192, 32: BLOCK}  # slots by head size, sliding and global
    assert kv_cache.kv_bytes == sum(2 * 2 * size * slots * 4 for size, slots in sizes.items())
    pairs.feed(target, kv_cache, TEXT, [LENGTH], all_outputs=False)
    sizes[32] = blocks = 5 * BLOCK
    assert blocks >= LENGTH
    assert kv_cache.kv_bytes == sum(2 * 2 * size * slots * 4 for size, slots in sizes.items())
    assert small_target("bfloat16").new_cache(LENGTH, MAX_DRAFT).kv_bytes * 2 == (
        target.new_cache(LENGTH, MAX_DRAFT).kv_bytes
    )


@pytest.mark.parametrize(("max_length", "max_draft"), [(0, 4), (513, 4), (100, -1), (100, 513)])
def test_impossible_caches_are_refused(max_length, max_draft):
    with pytest.raises(ConfigError, match="out of range"):
        small_target().new_cache(max_length, max_draft)


def spec(window: int | None) -> LayerSpec:
    return CONFIG.layer(0 if window else 1)


@pytest.mark.parametrize("ring_slots", [None, 2 * BLOCK])
@settings(max_examples=30, deadline=None, derandomize=True)
@given(sizes=st.lists(st.integers(1, 150), min_size=1, max_size=6), data=st.data())
def test_a_store_returns_what_was_written_last(ring_slots, sizes, data):
    """Against the obvious twin: a dictionary by position."""
    store = LayerStore(spec(ring_slots), ring_slots, 900, torch.float32)
    groups, size = store.keys.shape[1], store.keys.shape[3]
    written: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    start = 0
    for count in sizes:
        store.reserve(start + count)
        keys, values = torch.randn(2, count, groups, size).unbind()
        store.write(start, keys, values)
        written |= {start + i: (keys[i], values[i]) for i in range(count)}
        start = max(0, start + count - data.draw(st.integers(0, 8)))
    last = max(written)
    lowest = 0 if ring_slots is None else max(0, last - store.num_slots + 1)
    first = data.draw(st.integers(lowest, last))
    # A ring read counts whole blocks: the oldest may be partly overwritten, but not returned.
    if last // BLOCK - first // BLOCK + 1 <= store.num_blocks:
        keys, values = store.read(first, last)
        assert torch.equal(keys, torch.stack([written[p][0] for p in range(first, last + 1)], 1))
        assert torch.equal(values, torch.stack([written[p][1] for p in range(first, last + 1)], 1))
