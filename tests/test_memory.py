"""What a model needs against what is free, and that a load which cannot fit is refused."""

from __future__ import annotations

import platform
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from gguf_pair import files, source
from paceline import memory
from paceline.config import TargetConfig
from paceline.errors import OutOfMemoryError, PacelineError
from paceline.loading import load_pair
from paceline.memory import (
    PairOutline,
    bytes_per_token,
    free_memory,
    gigabytes,
    kv_bytes,
    num_weights,
    plan_memory,
)
from paceline.runtime.torch.cache import BLOCK
from paceline.runtime.torch.packed import can_pack
from paceline.runtime.torch.target import TILE

E2B = TargetConfig(
    hidden_size=1536,
    vocab_size=262_144,
    layer_kinds=(("sliding",) * 4 + ("global",)) * 7,
    num_heads=8,
    num_kv_heads=1,
    num_global_kv_heads=1,
    head_dim=256,
    global_head_dim=512,
    ffn_size=6144,
    double_wide_ffn=True,
    sliding_window=512,
    context_length=131_072,
    num_kv_shared_layers=20,
    per_layer_size=256,
    per_layer_vocab_size=262_144,
)


def test_e2b_is_as_large_as_its_reference_says():
    """Section 9 of the reference: 4.63 billion weights; 6,144 bytes per token in bfloat16."""
    assert round(num_weights(E2B) / 1e9, 2) == 4.63
    doubled = kv_bytes(E2B, "bfloat16", 65_536) - kv_bytes(E2B, "bfloat16", 32_768)
    assert doubled == 2 * 6_144 * 32_768  # a table that has just doubled is half empty


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_plan_is_what_the_runtime_holds(dtype):
    pair = load_pair(files("Q8_0")[0], dtype=dtype)
    outline = PairOutline(target=pair.target.config, drafter=pair.drafter.config)
    plan = plan_memory(outline, runtime="torch", dtype=dtype, context=200)
    parameters = [*pair.target.model.parameters(), *pair.drafter.model.state_dict().values()]
    held = sum(x.numel() * x.element_size() for x in parameters)
    if can_pack(getattr(torch, dtype)):
        head = pair.target.model.embed_tokens.weight
        held += head.numel() * head.element_size()
    assert plan.target_bytes + plan.drafter_bytes == held


@pytest.mark.parametrize("context", [1, 64, 65, 128, 129, 192, 193, 256])
def test_the_cache_is_as_large_as_planned(context):
    target = load_pair(files("Q8_0")[0], runtime="torch").target
    cache = target.new_cache(target.config.context_length, TILE)
    cache.reserve(max(1, context - BLOCK))  # the worst case: full to the last slot, then one more
    cache.reserve(context)
    assert cache.kv_bytes == kv_bytes(target.config, "float32", context)
    at_once = target.new_cache(target.config.context_length, TILE)
    at_once.reserve(context)
    assert at_once.kv_bytes <= cache.kv_bytes
    assert memory.BLOCK == BLOCK
    assert memory.RING_SLACK == TILE + 1


def test_too_little_memory(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 200_000)
    with pytest.raises(OutOfMemoryError, match=r"needs 1\.\d MB .* and 0\.2 MB are free") as caught:
        load_pair(source().target.path, runtime="torch")
    assert isinstance(caught.value, PacelineError | MemoryError)
    monkeypatch.setattr(memory, "free_memory", lambda: None)
    assert load_pair(source().target.path).drafter is not None


FREE_AND_GIVE_BACK = """
from paceline.memory import give_back_heap
def resident():
    line = next(x for x in open("/proc/self/status") if x.startswith("VmRSS"))
    return int(line.split()[1])
blocks = [bytes(5000) for _ in range(10000)]
blocks = blocks[-1:]  # the end of the heap stays in use
before = resident()
give_back_heap()
print(before - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="others keep less")
def test_freed_memory_goes_back():
    command = [sys.executable, "-c", FREE_AND_GIVE_BACK]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(run.stdout) > 40_000


def test_what_one_token_reads():
    """All but the per-layer table, and of the experts those that are chosen."""
    sizes = {"embed_tokens.weight": 7, "embed_tokens_per_layer.weight": 1000, "norm.weight": 2}
    assert bytes_per_token(E2B, sizes) == 9
    experts = {"layers.0.experts.gate_up_proj": 80, "layers.0.experts.down_proj": 40}
    mixture = replace(E2B, num_experts=8, num_experts_per_token=2, expert_ffn_size=32)
    assert bytes_per_token(mixture, sizes | experts) == 9 + 120 * 2 // 8


MEMINFO = "MemTotal: 24000000 kB\nMemFree: 1 kB\nMemAvailable:    2000 kB\nSwapFree: 500 kB\n"


@pytest.mark.parametrize(
    ("meminfo", "cgroup", "expected"),
    [
        (MEMINFO, {}, 2500 * 1024),
        (MEMINFO, {"memory.max": "max\n", "memory.current": "5\n"}, 2500 * 1024),
        (MEMINFO, {"memory.max": "900\n", "memory.current": "300\n"}, 600),
        (
            MEMINFO,
            {
                "memory.max": "900\n",
                "memory.current": "300\n",
                "memory.stat": "anon 7\ninactive_file 100\n",
            },
            700,
        ),
        (MEMINFO, {"memory.max": "900\n", "memory.current": "1000\n"}, 0),
        ("", {"memory.max": "900\n", "memory.current": "300\n"}, 600),
        ("MemAvailable: lots\nodd\n", {}, None),
    ],
)
def test_what_is_free(meminfo, cgroup, expected, tmp_path):
    (tmp_path / "meminfo").write_text(meminfo)
    for name, text in cgroup.items():
        (tmp_path / name).write_text(text)
    assert free_memory(tmp_path / "meminfo", tmp_path) == expected


def test_where_nothing_says_what_is_free(tmp_path):
    assert free_memory(tmp_path / "no", tmp_path / "no") is None


def test_sizes_for_people():
    assert [gigabytes(x) for x in (0, 99_949_999, 3_350_000_000)] == [
        "0.0 MB",
        "99.9 MB",
        "3.35 GB",
    ]
