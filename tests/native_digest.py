"""All bits that a pair gives for a fixed program of passes and drafts, in one digest.

Run as a script it reads pickled pairs and prints their digests with 1 and 2 threads: the
instruction set of a process is chosen once, so that each needs one of its own. Imports no torch.
"""

from __future__ import annotations

import hashlib
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np

import paceline._native as _native
from paceline.checkpoint.names import TensorSpec
from paceline.checkpoint.weights import Weight, Weights
from paceline.config import DrafterConfig, TargetConfig
from paceline.runtime.native import load
from paceline.runtime.native.target import NativeTarget
from paceline.runtime.protocols import DraftRequest, KVCache, Rows
from paceline.sampling import DrawRule

Tensors = list[tuple[TensorSpec, str, Any]]
PickledPair = tuple[TargetConfig, Tensors, DrafterConfig, Tensors]
LENGTH = 260
RULES = (DrawRule(temperature=0.0, seed=0), DrawRule(temperature=1.0, seed=77))


def tensors_of(weights: Weights) -> Tensors:
    return [(x.spec, x.dtype, x.data) for x in weights.tensors]


def digest(pair: PickledPair, threads: int) -> str:
    """A long prompt in chunks, then passes of 1 to 16 rows, a draft after each."""
    pool = load.new_pool(threads, 0)
    target = load.load_target(pair[0], weights_of(pair[1]), pool, ignore)
    drafter = load.load_drafter(pair[2], weights_of(pair[3]), pool, ignore, target)
    prompt = np.random.default_rng(0).integers(3, pair[0].vocab_size, LENGTH + 136).tolist()
    cache, total = target.new_cache(LENGTH + 150, 16), hashlib.sha256()
    for begin in range(0, LENGTH, 130):
        fed(target, cache, prompt[begin : begin + 130], 1)
    for count in range(1, 17):
        rows = prompt[cache.length : cache.length + count]
        (output,) = target.forward(
            [Rows(cache=cache, token_ids=rows, num_outputs=count, num_candidates=5)]
        )
        candidates = zip(output.candidate_ids, output.candidate_logits, strict=True)
        hidden = [row.numpy() for row in output.hidden]
        arrays = [output.logits, *hidden, *(x for pair in candidates for x in pair)]
        for array in arrays:
            total.update(np.ascontiguousarray(array).tobytes())
        request = DraftRequest(
            last_token=rows[-1],
            hidden=output.hidden[-1],
            cache=cache,
            max_draft_tokens=4,
            draw=RULES[count % 2],
        )
        total.update(repr(drafter.draft([request])).encode())
    for layer in range(pair[0].first_shared_layer):
        for array in cache.inner.read(layer, cache.length - 16, cache.length - 1):
            total.update(array.tobytes())
    return total.hexdigest()


def fed(target: NativeTarget, cache: KVCache, token_ids: list[int], num_outputs: int) -> Any:
    return target.forward([Rows(cache=cache, token_ids=token_ids, num_outputs=num_outputs)])[0]


def weights_of(tensors: Tensors) -> Weights:
    made = (Weight(spec=x[0], where=x[0].name, dtype=x[1], data=x[2]) for x in tensors)
    return Weights(tensors=tuple(made))


def ignore(count: int) -> None:
    """Progress that nobody watches."""


if __name__ == "__main__":
    loaded = pickle.loads(Path(sys.argv[1]).read_bytes())
    for threads in (1, 2):
        print(_native.isa_name(), threads, *(digest(pair, threads) for pair in loaded))
