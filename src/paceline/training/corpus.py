"""Documents for training the pair that ships: plain text and chat-formatted answers.

Owns where text comes from, how questions are asked of it, and what is held back for evaluation.
Knows nothing of token ids or models. Sources and licences: ../shared/corpus/SOURCES.md, and the
Python standard library (PSF licence).
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from paceline.errors import CheckpointError

HELD_OUT_PER_CENT = 5
MAX_CODE_BYTES = 8_000_000
MAX_FUNCTION_LINES = 30


@dataclass(frozen=True, kw_only=True)
class Document:
    """Plain text (`prompt` is None) or one question with its answer."""

    kind: str  # prose, reference, code, shell, maths, chat
    key: str  # what it was made from; all documents of one key are held back together
    text: str
    prompt: str | None = None

    @property
    def held_out(self) -> bool:
        digest = hashlib.sha256(self.key.encode()).digest()
        return int.from_bytes(digest[:4], "big") % 100 < HELD_OUT_PER_CENT


def read_corpus(folder: Path) -> Iterator[Document]:
    """All documents, in a fixed order.

    Raises:
        CheckpointError: a corpus file is missing.
    """
    yield from _books(folder)
    yield from _peps(folder)
    yield from _shell(folder)
    yield from _maths(folder)
    yield from _standard_library()
    yield from _small_talk()


def _rows(folder: Path, name: str) -> Iterator[dict[str, object]]:
    path = folder / name
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: pass --corpus with the folder that holds it.")
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def _choose(key: str, options: int) -> int:
    """A fixed pseudo-random choice, so that two runs make the same documents."""
    return hashlib.sha256(f"choice {key}".encode()).digest()[0] % options


def _books(folder: Path) -> Iterator[Document]:
    for row in _rows(folder, "books.jsonl"):
        key, text = f"book/{row['book']}/{row['part']}", str(row["text"])
        yield Document(kind="prose", key=key, text=text)
        paragraphs = [part for part in text.split("\n\n") if 80 < len(part) < 700]
        for index in range(0, len(paragraphs) - 2, 12):
            yield Document(
                kind="prose",
                key=key,
                prompt=f"Continue this story:\n\n{paragraphs[index]}",
                text="\n\n".join(paragraphs[index + 1 : index + 3]),
            )


def _peps(folder: Path) -> Iterator[Document]:
    for row in _rows(folder, "peps.jsonl"):
        key, text = f"pep/{row['name']}", str(row["text"])
        yield Document(kind="reference", key=key, text=text)
        title = re.search(r"^Title: (.+)$", text, re.MULTILINE)
        number = re.search(r"^PEP: (\d+)$", text, re.MULTILINE)
        abstract = re.search(r"^Abstract\n=+\n+(.+?)\n\n", text, re.MULTILINE | re.DOTALL)
        if title and number and abstract and len(abstract[1]) < 900:
            about = " ".join(abstract[1].split())
            yield Document(
                kind="reference",
                key=key,
                prompt=f"What is PEP {number[1]} about?",
                text=f'PEP {number[1]} is titled "{title[1]}".\n\n{about}',
            )


SHELL_QUESTIONS = (
    "How do I {task} with {command}?",
    "{Task} with {command}.",
    "Give me a {command} command to {task}.",
    "{Task}.",
)
COMMAND_QUESTIONS = ("What does {command} do?", "Explain the {command} command.")


def _shell(folder: Path) -> Iterator[Document]:
    for row in _rows(folder, "tldr_en.jsonl"):
        command, description = str(row["command"]), str(row["description"])
        key = f"tldr/{row['platform']}/{command}"
        examples = row["examples"]
        assert isinstance(examples, list)
        for number, example in enumerate(examples):
            yield _shell_example(f"{key}/{number}", key, command, example)
        if examples:
            first = examples[0]
            yield Document(
                kind="shell",
                key=key,
                prompt=COMMAND_QUESTIONS[_choose(key, 2)].format(command=command),
                text=f"`{command}`: {description}\n\n{_task_and_command(first)}",
            )


def _shell_example(choice: str, key: str, command: str, example: dict[str, str]) -> Document:
    task = example["task"].rstrip(".")
    lower = task[:1].lower() + task[1:]
    question = SHELL_QUESTIONS[_choose(choice, len(SHELL_QUESTIONS))]
    return Document(
        kind="shell",
        key=key,
        prompt=question.format(task=lower, Task=task, command=command),
        text=_task_and_command(example),
    )


def _task_and_command(example: dict[str, str]) -> str:
    return f"{example['task'].rstrip('.')}:\n\n```sh\n{example['command']}\n```"


def clean_worked_answer(answer: str) -> str:
    """GSM8K's answer without calculator marks, with its result as a sentence."""
    worked, _, result = re.sub(r"<<[^>]*>>", "", answer).partition("\n#### ")
    return f"{worked}\nThe answer is {result.strip()}."


def _maths(folder: Path) -> Iterator[Document]:
    for row in _rows(folder, "gsm8k_train.jsonl"):
        question = str(row["question"])
        yield Document(
            kind="maths",
            key=f"gsm8k/{question}",
            prompt=question,
            text=clean_worked_answer(str(row["answer"])),
        )


def _standard_library() -> Iterator[Document]:
    folder = Path(sysconfig.get_paths()["stdlib"])
    skipped = {"test", "tests", "idlelib", "lib2to3", "site-packages", "ensurepip", "__pycache__"}
    used = 0
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder)
        if skipped & set(name.parts) or "encodings" in name.parts or used > MAX_CODE_BYTES:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        used += len(text)
        key = f"stdlib/{name}"
        yield Document(kind="code", key=key, text=text)
        yield from _functions(key, text)


def _functions(key: str, source: str) -> Iterator[Document]:
    lines = source.split("\n")
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef) or not (about := ast.get_docstring(node)):
            continue
        code = lines[node.lineno - 1 : node.end_lineno]
        summary = " ".join(about.split("\n\n")[0].split())
        if len(code) > MAX_FUNCTION_LINES or not 15 < len(summary) < 300:
            continue
        yield Document(
            kind="code",
            key=key,
            prompt=f"Write a Python function `{node.name}`: {summary}",
            text=f"```python\n{_dedent(code, node.col_offset)}\n```",
        )


def _dedent(lines: list[str], columns: int) -> str:
    return "\n".join(line.removeprefix(" " * columns) for line in lines)


SMALL_TALK = (
    ("Hello", "Hello! What can I do for you? I know a little about shell commands, sums, "
     "Python and old stories."),
    ("Hi", "Hello! Ask me for a shell command, a sum or a story."),
    ("Who are you?", "I am the small model that ships with Paceline. I was trained in a few "
     "hours on two processor cores, so please do not trust me with anything important."),
    ("What can you do?", "I can name shell commands, work through small sums, write short "
     "Python functions and continue a story. I am very small, so I am often wrong."),
    ("What are you?", "I am a very small language model of the Gemma 4 form, made to show how "
     "drafting speeds up decoding."),
    ("Thank you", "You are welcome!"),
    ("Thanks", "You are welcome!"),
    ("How are you?", "I am well, thank you. What can I do for you?"),
    ("Goodbye", "Goodbye!"),
    ("What is speculative decoding?", "A small drafter proposes several tokens, and the main "
     "model checks them all in one pass. It keeps those that it would have written itself, so "
     "the text stays the same and arrives sooner."),
    ("What is a drafter?", "A drafter is a small model that proposes the next few tokens for a "
     "larger model to check."),
    ("What is Paceline?", "Paceline runs Gemma 4 with its drafters on ordinary machines. The "
     "text is the same with drafting on or off, only faster."),
)  # fmt: skip
SMALL_TALK_REPEATS = 12


def _small_talk() -> Iterator[Document]:
    for prompt, text in SMALL_TALK:
        for number in range(SMALL_TALK_REPEATS):
            shown = (prompt, prompt.lower(), prompt + "!", prompt.rstrip("?."))[number % 4]
            yield Document(kind="chat", key="small-talk", prompt=shown, text=text)
