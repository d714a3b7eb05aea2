"""A corpus of a few kilobytes in the form that training reads, with held-out documents of each
kind but small talk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from paceline.training import corpus
from paceline.training.corpus import Document, read_corpus

WORDS = ("the", "a", "fox", "hen", "saw", "took", "ran", "and", "over", "river", "old", "key")
LIBRARY_MODULE = '''"""Greetings."""

class Greeter:
    def greet(self, name):
        """Return a friendly greeting for a name."""
        return f"Hello, {name}"

    def undocumented(self):
        return None

def long(rows):
    """Too many lines to be asked for as a whole."""
''' + "".join(f"    rows.append({number})\n" for number in range(30))


def sentence(seed: int, words: int) -> str:
    chosen = np.random.default_rng(seed).choice(WORDS, words)
    return " ".join(chosen).capitalize() + "."


def names(pattern: str, trained: int, held_out: int) -> Iterator[str]:
    """The first names of a pattern whose keys are trained on, and held back."""
    wanted = {False: trained, True: held_out}
    for number in count():
        name = pattern.format(number)
        side = Document(kind="", key=name, text="").held_out
        if wanted[side]:
            wanted[side] -= 1
            yield name
        if not any(wanted.values()):
            return


def write_corpus(folder: Path) -> Path:
    """The four files, and a standard library in `folder/library`."""
    folder.mkdir(parents=True)
    rows = {
        "books": [
            {"book": "tales", "part": name.split("/")[2], "text": _book(seed)}
            for seed, name in enumerate(names("book/tales/{}", 3, 2))
        ],
        "peps": [
            {"name": name.removeprefix("pep/"), "text": _pep(seed)}
            for seed, name in enumerate(names("pep/pep-{}.rst", 3, 2))
        ],
        "tldr_en": [_command(name.split("/")[2]) for name in names("tldr/linux/c{}", 8, 4)],
        "gsm8k_train": [
            {"question": name.removeprefix("gsm8k/"), "answer": _sum(seed)}
            for seed, name in enumerate(names("gsm8k/How many are {} + 2?", 8, 8))
        ],
    }
    for name, lines in rows.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    for name in (*names("stdlib/m{}.py", 3, 3), "stdlib/test/skipped.py"):
        path = folder / "library" / name.removeprefix("stdlib/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(LIBRARY_MODULE, encoding="utf-8")
    return folder


def read_tiny_corpus(folder: Path) -> list[Document]:
    """All documents, with the small library for the standard one."""
    library = SimpleNamespace(get_paths=lambda: {"stdlib": str(folder / "library")})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "sysconfig", library)
        return list(read_corpus(folder))


def _book(seed: int) -> str:
    return "\n\n".join(sentence(100 * seed + number, 30) for number in range(6))


def _pep(seed: int) -> str:
    return (
        f"PEP: {seed}\nTitle: Of {sentence(seed, 3)}\n\nAbstract\n========\n\n"
        f"{sentence(seed, 20)}\n{sentence(seed + 50, 20)}\n\nBody\n====\n\n{sentence(seed, 60)}"
    )


def _command(name: str) -> dict[str, object]:
    return {
        "platform": "linux",
        "command": name,
        "description": f"{sentence(len(name), 5)}",
        "examples": [
            {"task": "List the old keys", "command": f"{name} --list {{{{path}}}}"},
            {"task": "Take a small key.", "command": f"{name} -k | wc -l"},
        ],
    }


def _sum(seed: int) -> str:
    return f"{seed} + 2 = <<{seed}+2={seed + 2}>>{seed + 2} in all.\n#### {seed + 2}"
