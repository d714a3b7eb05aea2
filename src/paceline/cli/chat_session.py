"""The state of a running chat and its loop: read a message, answer it or obey a command."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paceline.cli import slash_commands
from paceline.cli.answer import stream_answer
from paceline.cli.common import AnswerSettings
from paceline.cli.conversation import Conversation
from paceline.cli.line_input import LineInput, read_message
from paceline.cli.slash_commands import Next
from paceline.cli.terminal import note
from paceline.errors import PacelineError
from paceline.stats import GenerationStats

if TYPE_CHECKING:
    from paceline.engine import Engine


class ChatSession:
    """One conversation with one engine.

    Args:
        interactive: a person is typing: errors and interrupts end a turn, not the program.
    """

    def __init__(
        self,
        engine: Engine,
        settings: AnswerSettings,
        *,
        system: str | None = None,
        interactive: bool = True,
    ) -> None:
        self.engine = engine
        self.settings = settings
        self.conversation = Conversation(system=system)
        self.interactive = interactive
        self.totals = GenerationStats(generations=0)
        self.attached: list[str] = []
        self.failed = False

    def run(self, source: LineInput) -> None:
        """Talk until the input ends or a command leaves."""
        while True:
            try:
                message = read_message(source)
            except EOFError:
                return
            except KeyboardInterrupt:
                if not self.interactive:
                    raise
                note("Ctrl-D or /bye leaves.")
                continue
            if self._take(message) is Next.LEAVE:
                return

    def _take(self, message: str) -> Next:
        """One message. An error is told and ends it; the conversation goes on."""
        try:
            step = self._understand(message)
            if step is Next.ANSWER:
                self.answer()
            return step
        except BrokenPipeError:  # nobody reads the answers any more
            raise
        except (PacelineError, OSError) as error:
            self.failed = True
            note(f"error: {' '.join(str(error).split())}")
            return Next.READ

    def _understand(self, message: str) -> Next:
        if message.startswith("/") and not message.startswith("//"):
            return slash_commands.run(self, message)
        if not message.strip() and not self.attached:
            return Next.READ
        text = message[1:] if message.startswith("//") else message
        self.conversation.ask("\n\n".join([*self.attached, text]).strip())
        self.attached.clear()
        return Next.ANSWER

    def answer(self) -> None:
        """Answer the last question. It is taken back if no answer even began."""
        try:
            result = stream_answer(self.engine, self.conversation.messages(), self.settings)
        except PacelineError:
            self.conversation.undo()
            raise
        stopped = result.finish_reason == "cancelled"
        if stopped and not self.interactive:
            raise KeyboardInterrupt
        if stopped and not result.tokens:
            self.conversation.undo()
            return
        self.totals.add(result.stats)
        self.conversation.answer(result.text)
