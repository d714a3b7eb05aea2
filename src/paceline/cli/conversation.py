"""The messages of a chat: said, taken back, saved and loaded. Runs nothing.

A saved conversation is the `messages` list of the chat APIs in a JSON file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paceline.chat import Message
from paceline.errors import PacelineError


class ConversationFileError(PacelineError, ValueError):
    """A file does not hold a saved conversation."""


@dataclass(kw_only=True)
class Conversation:
    """Turns of user and assistant, after an optional system text."""

    system: str | None = None
    turns: list[Message] = field(default_factory=list)

    def messages(self) -> list[Message]:
        """All messages, as the engine wants them."""
        system = [Message(role="system", content=self.system)] if self.system else []
        return [*system, *self.turns]

    def ask(self, text: str) -> None:
        self.turns.append(Message(role="user", content=text))

    def answer(self, text: str) -> None:
        self.turns.append(Message(role="assistant", content=text))

    def undo(self) -> bool:
        """Take back the last question and its answer. False if there is none."""
        questions = [i for i, turn in enumerate(self.turns) if turn.role == "user"]
        if not questions:
            return False
        del self.turns[questions[-1] :]
        return True

    def undo_answer(self) -> bool:
        """Take back what follows the last question. False if there is no question."""
        while self.turns and self.turns[-1].role != "user":
            self.turns.pop()
        return bool(self.turns)

    def save(self, path: Path) -> None:
        """Write the file whole or not at all."""
        rows = [{"role": m.role, "content": m.content} for m in self.messages()]
        unfinished = path.with_name(path.name + ".unfinished")
        unfinished.write_text(
            json.dumps({"messages": rows}, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
        )
        unfinished.replace(path)

    def load(self, path: Path) -> None:
        """Take over a saved conversation; this one stays as it is if that fails.

        Raises:
            ConversationFileError: the file does not hold one.
        """
        rows = _rows(path)
        system = rows.pop(0)["content"] if rows and rows[0]["role"] == "system" else None
        if any(row["role"] == "system" for row in rows):
            raise ConversationFileError(f"{path} has a system message that is not the first.")
        self.system = system
        self.turns = [Message(role=row["role"], content=row["content"]) for row in rows]


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConversationFileError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise ConversationFileError(f"{path} is not JSON text: {error}.") from error
    rows = document.get("messages") if isinstance(document, dict) else None
    if not isinstance(rows, list) or not all(map(_is_message, rows)):
        raise ConversationFileError(
            f"{path} is not a saved conversation: expected an object with a list of messages, "
            "each with a role (system, user or assistant) and a content text."
        )
    return rows


def _is_message(row: object) -> bool:
    return (
        isinstance(row, dict)
        and row.get("role") in ("system", "user", "assistant")
        and isinstance(row.get("content"), str)
    )
