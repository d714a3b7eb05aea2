"""llama.cpp in a process of its own, told what to do by lines of JSON on its standard input.

Needs the llama_cpp package and nothing of Paceline, so that any Python can run it. It computes only
while a command is being answered. `LlamaCpp` is the other end of the pipe.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

START_LIMIT_S = 60.0


class LlamaCppError(RuntimeError):
    """The other process cannot do what was asked."""


# --- This end -----------------------------------------------------------------------------------


class LlamaCpp:
    """A worker, from its start to its end.

    Args:
        python: an interpreter that has llama_cpp.

    Raises:
        LlamaCppError: it has not, or does not start.
    """

    def __init__(self, python: str) -> None:
        try:
            self._process = subprocess.Popen(
                [python, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        except OSError as error:
            raise LlamaCppError(f"cannot run {python} ({error.strerror}).") from error
        self.about: dict[str, Any] = {}
        try:
            self.about = self.ask("about")
        except LlamaCppError as error:
            self.close()
            raise LlamaCppError(
                f"{python} cannot use llama_cpp: {error} Install llama-cpp-python there, built "
                "for this processor (pip install --no-binary :all: llama-cpp-python)."
            ) from error

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Give a command and wait for its answer: one of the methods of `Worker`.

        Raises:
            LlamaCppError: it failed, or the process has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
            self._process.stdin.flush()
        except OSError:
            pass  # it has ended; so has its output
        line = self._process.stdout.readline()
        if not line:
            raise LlamaCppError(f"llama.cpp's process ended during {command!r}.")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise LlamaCppError(str(answer["error"]))
        return answer

    def close(self) -> None:
        """End the process. Harmless when repeated."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None and not pipe.closed:
                try:
                    pipe.close()
                except OSError:
                    continue
        try:
            self._process.wait(START_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


# --- The other end ------------------------------------------------------------------------------


class Worker:
    """One model and one sequence. Every method is a command; its result is the answer."""

    def __init__(self) -> None:
        import llama_cpp

        self.api = llama_cpp
        self.model: Any = None
        self.context: Any = None
        self.batch: Any = None
        self.vocab_size = 0
        self.length = 0
        llama_cpp.llama_backend_init()

    def about(self) -> dict[str, Any]:
        info = self.api.llama_print_system_info()
        return {"version": self.api.__version__, "system": info.decode().strip()}

    def load(self, path: str, threads: int, max_length: int, max_outputs: int) -> dict[str, Any]:
        """Load a target. Flash attention, and a KV cache of half precision, as in Paceline."""
        api = self.api
        started = time.perf_counter()
        self.model = api.llama_model_load_from_file(path.encode(), api.llama_model_default_params())
        if not self.model:
            raise LlamaCppError(f"llama.cpp refuses {path}.")
        params = api.llama_context_default_params()
        params.n_ctx = max_length
        params.n_batch = params.n_ubatch = 512
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = 1
        params.swa_full = False
        params.no_perf = True
        if hasattr(params, "n_outputs_max"):  # else scores of all rows of a batch are allocated
            params.n_outputs_max = max_outputs
        self.context = api.llama_init_from_model(self.model, params)
        if not self.context:
            raise LlamaCppError(f"llama.cpp cannot make a context of {max_length} tokens.")
        self.vocab_size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))
        self.batch = api.llama_batch_init(512, 0, 1)
        return {"load_s": time.perf_counter() - started}

    def feed(self, token_ids: list[int], num_outputs: int) -> dict[str, Any]:
        """One pass over tokens at the next positions, with scores of the last `num_outputs`."""
        batch = self.batch
        batch.n_tokens = len(token_ids)
        for row, token_id in enumerate(token_ids):
            batch.token[row] = token_id
            batch.pos[row] = self.length + row
            batch.n_seq_id[row] = 1
            batch.seq_id[row][0] = 0
            batch.logits[row] = row >= len(token_ids) - num_outputs
        started = time.perf_counter()
        status = self.api.llama_decode(self.context, batch)
        self.api.llama_synchronize(self.context)
        elapsed = time.perf_counter() - started
        if status:
            raise LlamaCppError(f"llama_decode failed with {status}.")
        self.length += len(token_ids)
        return {"s": elapsed}

    def truncate(self, length: int) -> dict[str, Any]:
        memory = self.api.llama_get_memory(self.context)
        if not self.api.llama_memory_seq_rm(memory, 0, length, -1):
            raise LlamaCppError(f"llama.cpp cannot go back to {length} positions.")
        self.length = length
        return {}

    def decode(self, first: int, count: int) -> dict[str, Any]:
        """The most likely tokens one by one."""
        token_ids = []
        token_id = first
        started = time.perf_counter()
        for _ in range(count):
            self.feed([token_id], 1)
            token_id = int(self.scores().argmax())
            token_ids.append(token_id)
        return {"token_ids": token_ids, "s": time.perf_counter() - started}

    def follow(self, prompt: list[int], answer: list[int], suppressed: list[int]) -> dict[str, Any]:
        """What it would say in place of each token of an answer, given all before it.

        Returns the most likely tokens but for suppressed ones, and how far above the answer's
        token each of them scores.
        """
        self.truncate(0)
        for start in range(0, len(prompt), 512):
            self.feed(prompt[start : start + 512], 1)
        token_ids, leads = [], []
        for said in answer:
            row = self.scores().copy()
            row[suppressed] = float("-inf")
            best = int(row.argmax())
            token_ids.append(best)
            leads.append(float(row[best] - row[said]))
            self.feed([said], 1)
        return {"token_ids": token_ids, "leads": leads}

    def scores(self) -> Any:
        """The last row's scores: a view that the next pass overwrites."""
        import numpy as np

        pointer = self.api.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(
            ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), (self.vocab_size,)
        )

    def tokenize(self, text: str) -> dict[str, Any]:
        """Token ids of plain text after <bos>."""
        content = text.encode()
        vocab = self.api.llama_model_get_vocab(self.model)
        room = len(content) + 8
        ids = (self.api.llama_token * room)()
        count = self.api.llama_tokenize(vocab, content, len(content), ids, room, True, False)
        if count < 0:
            raise LlamaCppError("llama.cpp cannot tokenize the text.")
        return {"token_ids": list(ids[:count])}

    def memory(self) -> dict[str, Any]:
        """Bytes resident now, of them not backed by files, and at most so far."""
        fields = {}
        for line in Path("/proc/self/status").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name in ("VmHWM", "VmRSS", "RssAnon"):
                fields[name] = 1024 * int(rest.split()[0])
        return fields


def serve() -> None:
    """Answer commands until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing but answers may reach the pipe
    worker: Worker | None = None
    for line in sys.stdin:
        request = json.loads(line)
        command = request.pop("command")
        try:
            worker = worker or Worker()
            answer = getattr(worker, command)(**request)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve()
