"""Pairs of transformers' models and ours with the same weights, for parity and cache tests."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import geometries
from paceline.checkpoint.huggingface import open_drafter, open_target
from paceline.runtime.protocols import PassOutput, Rows
from paceline.runtime.torch.cache import TorchKVCache
from paceline.runtime.torch.drafter import TorchDrafter
from paceline.runtime.torch.load import WeightDtype, load_drafter, load_target
from paceline.runtime.torch.target import TorchTarget
from paceline.sampling import Sampler, SamplingParams
from paceline.speculative.controller import FixedDraftLength
from paceline.speculative.round import run_round

torch.set_num_threads(1)  # these models are too small to share out


@dataclass(frozen=True)
class Pair:
    """`judge_*` are transformers' float32 models with eager attention."""

    judge_target: Any
    judge_drafter: Any
    target: TorchTarget
    drafter: TorchDrafter


@cache
def judges(name: str) -> tuple[Any, Any]:
    models = geometries.target_model(name), geometries.drafter_model(name)
    for model in models:
        model.set_attn_implementation("eager")
    return models


@cache
def load(name: str, dtype: WeightDtype = "float32") -> Pair:
    """Both through the checkpoint reader: transformers writes, we read."""
    judge_target, judge_drafter = judges(name)
    with tempfile.TemporaryDirectory() as folder:
        target_folder, drafter_folder = Path(folder, name), Path(folder, f"{name}-assistant")
        judge_target.save_pretrained(target_folder)
        judge_drafter.save_pretrained(drafter_folder)
        opened, opened_drafter = open_target(target_folder), open_drafter(drafter_folder)
        target = load_target(opened.config, opened.weights, dtype, lambda count: None)
        drafter = load_drafter(
            opened_drafter.config, opened_drafter.weights, dtype, lambda count: None, target
        )
    return Pair(judge_target, judge_drafter, target, drafter)


def tokens(count: int, seed: int = 0) -> list[int]:
    """Random ordinary tokens of the tiny vocabularies."""
    generator = np.random.default_rng(seed)
    return [int(x) for x in generator.integers(3, geometries.VOCABULARY, count)]


def feed(
    target: TorchTarget,
    kv_cache: TorchKVCache,
    token_ids: list[int],
    sizes: list[int],
    *,
    all_outputs: bool = True,
) -> list[PassOutput]:
    """Feed tokens in passes of the given sizes, which must add up."""
    assert sum(sizes) == len(token_ids)
    outputs, begin = [], 0
    for size in sizes:
        part = token_ids[begin : begin + size]
        begin += size
        wanted = size if all_outputs else int(begin == len(token_ids))
        rows = Rows(cache=kv_cache, token_ids=part, num_outputs=wanted)
        outputs += target.forward([rows])
    return outputs


def logits_of(outputs: list[PassOutput]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([output.logits for output in outputs]))


def hidden_of(outputs: list[PassOutput]) -> torch.Tensor:
    return torch.stack([row for output in outputs for row in output.hidden])


class PlainSequence:
    """A sequence of tokens and nothing else: what a round needs (`RoundSequence`)."""

    end_token_ids: frozenset[int] = frozenset()
    text_kind = "prose"
    sources = None

    def __init__(self, target, prompt, count, draft, max_draft_tokens, params):
        self.sampler = Sampler(params, vocab_size=target.config.vocab_size, seed=params.seed or 0)
        self.policy = FixedDraftLength(draft, max_draft_tokens)
        self.cache = target.new_cache(len(prompt) + count, max_draft_tokens)
        self.num_tokens = count
        self.emitted: list[int] = []
        output = feed(target, self.cache, prompt, [len(prompt)], all_outputs=False)[-1]
        choice = self.sampler.choose(output.logits[-1], len(prompt))
        self.sampler.commit(choice.token_id)
        self.push(choice, drafted=False)
        self.last_token, self.hidden = choice.token_id, output.hidden[-1]

    @property
    def num_tokens_left(self) -> int:
        return self.num_tokens - len(self.emitted)

    def push(self, choice, *, drafted) -> bool:
        self.emitted.append(choice.token_id)
        return self.num_tokens_left > 0


def generate(target, drafter, prompt, count, *, draft, temperature=0.0) -> list[int]:
    """`count` tokens after the prompt, by rounds."""
    limit = drafter.max_draft_tokens if drafter else 0
    params = SamplingParams(temperature=temperature, seed=7)
    sequence = PlainSequence(target, prompt, count, draft, limit, params)
    while sequence.num_tokens_left:
        run_round(target, drafter, [sequence])
    return sequence.emitted
