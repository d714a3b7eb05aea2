"""Trains the shipped pair's tokenizer: BPE with byte fallback, of Gemma 4's form.

Spaces become U+2581, control tokens sit at Gemma 4's own ids (reference section 6.2), and the
file has no pre-tokenizer, as Gemma's has none: words are kept apart while learning merges only.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer

from paceline.errors import ConfigError

CONTROL_TOKENS = {
    0: "<pad>",
    1: "<eos>",
    2: "<bos>",
    3: "<unk>",
    4: "<mask>",
    46: "<|tool>",
    47: "<tool|>",
    48: "<|tool_call>",
    49: "<tool_call|>",
    50: "<|tool_response>",
    51: "<tool_response|>",
    52: '<|"|>',
    98: "<|think|>",
    100: "<|channel>",
    101: "<channel|>",
    105: "<|turn>",
    106: "<turn|>",
}
NUM_RESERVED = 107
ALPHABET_SIZE = 300
ALWAYS_THERE = ("▁", "\n", "\t")

WORDS = Regex(r"\n+|\t+|▁*\p{L}+|▁?\p{N}|▁?[^\p{L}\p{N}▁\n\t]+|▁+")


def train_vocabulary(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A tokenizer with exactly `vocab_size` entries, deterministic for the same texts.

    Raises:
        ConfigError: the texts do not yield that many.
    """
    texts = list(texts)
    reserved = [CONTROL_TOKENS.get(i, f"<unused{i}>") for i in range(NUM_RESERVED)]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    learner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    learner.normalizer = normalizers.Replace(" ", "▁")
    learner.pre_tokenizer = pre_tokenizers.Split(WORDS, behavior="isolated")
    learner.train_from_iterator(
        texts,
        BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=reserved + byte_tokens,
            limit_alphabet=ALPHABET_SIZE,
            initial_alphabet=_alphabet(texts),
            max_token_length=24,
            show_progress=False,
        ),
    )
    _check_size(learner.get_vocab_size(), vocab_size)
    return _in_gemma_form(learner, reserved)


def _check_size(got: int, wanted: int) -> None:
    if got < wanted:
        raise ConfigError(
            f"the texts yield only {got} tokens, not {wanted}: add text, or ask for fewer tokens."
        )
    if got > wanted:
        raise ConfigError(
            f"vocab_size={wanted} is too small: control tokens, bytes and single characters take "
            f"{got}. Ask for more tokens."
        )


def _alphabet(texts: Iterable[str]) -> list[str]:
    """The most frequent characters. The trainer's own choice breaks ties by chance."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text.replace(" ", "▁"))
    others = counts.keys() - ALWAYS_THERE
    ranked = sorted(others, key=lambda character: (-counts[character], character))
    return [*ALWAYS_THERE, *ranked][:ALPHABET_SIZE]


def _in_gemma_form(learner: Tokenizer, reserved: list[str]) -> Tokenizer:
    """The same vocabulary and merges; byte tokens ordinary, control tokens special."""
    model = json.loads(learner.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=model["vocab"],
            merges=merges,
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in reserved])
    return tokenizer


def save_vocabulary(tokenizer: Tokenizer, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
