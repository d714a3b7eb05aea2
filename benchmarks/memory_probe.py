"""Memory and load time of a pair, in a process that does nothing else.

Loads a target with or without its drafter, runs a prompt and a few rounds, and says what is
resident. Run with and without a drafter it does the same passes, so that the difference is the
drafter's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from paceline.engine import PREFILL_CHUNK
from paceline.errors import PacelineError
from paceline.loading import LoadedPair, load_pair
from paceline.runtime.protocols import DraftRequest, Rows
from paceline.sampling import DrawRule
from synthetic_gguf import ordinary_tokens

ROUNDS = 8
DRAFT = 4


class ProbeError(PacelineError):
    """The other process failed; the message is its own."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes resident before loading, after it, after the rounds, and at most.

    Args:
        anonymous_bytes: of those after the rounds the ones that no file backs.
        load_s: seconds of loading.
    """

    bare_bytes: int
    loaded_bytes: int
    rss_bytes: int
    anonymous_bytes: int
    peak_rss_bytes: int
    kv_bytes: int
    load_s: float


def probe(
    target: Path,
    drafter: Path | None,
    *,
    runtime: str,
    threads: int,
    context: int,
    cold: bool = False,
) -> Memory:
    """Measure in a fresh process.

    Args:
        cold: read the files from the disk, not from the system's cache.

    Raises:
        ProbeError: the pair cannot be loaded.
    """
    request = {
        "target": str(target),
        "drafter": drafter and str(drafter),
        "runtime": runtime,
        "threads": threads,
        "context": context,
    }
    if cold:
        for path in (target, drafter):
            if path is not None:
                _forget(path)
    command = [sys.executable, __file__, json.dumps(request)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        lines = result.stderr.strip().splitlines() or ["it said nothing"]
        raise ProbeError(f"measuring memory failed: {lines[-1]}")
    return Memory(**json.loads(result.stdout.splitlines()[-1]))


def _forget(path: Path) -> None:
    """Have the system drop a file from its cache; what is not yet on the disk goes there first."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# --- The other process --------------------------------------------------------------------------


def _measure(target: str, drafter: str | None, runtime: str, threads: int, context: int) -> Memory:
    bare = _resident("VmRSS")
    started = time.perf_counter()
    pair = load_pair(target, drafter, runtime=runtime, threads=threads)
    load_s = time.perf_counter() - started
    loaded = _resident("VmRSS")
    kv_bytes = _run(pair, ordinary_tokens(context, pair.target.config.vocab_size))
    return Memory(
        bare_bytes=bare,
        loaded_bytes=loaded,
        rss_bytes=_resident("VmRSS"),
        anonymous_bytes=_resident("RssAnon"),
        peak_rss_bytes=_resident("VmHWM"),
        kv_bytes=kv_bytes,
        load_s=load_s,
    )


def _run(pair: LoadedPair, context: list[int]) -> int:
    """A prompt and some rounds whose draft is rejected whole. Returns the cache's size."""
    cache = pair.target.new_cache(len(context) + DRAFT + 1, DRAFT)
    for start in range(0, len(context), PREFILL_CHUNK):
        chunk = context[start : start + PREFILL_CHUNK]
        output = pair.target.forward([Rows(cache=cache, token_ids=chunk, num_outputs=1)])[0]
    for _ in range(ROUNDS):
        if pair.drafter:
            request = DraftRequest(
                last_token=context[-1],
                hidden=output.hidden[-1],
                cache=cache,
                max_draft_tokens=DRAFT,
                draw=DrawRule(temperature=0.0, seed=0),
            )
            pair.drafter.draft([request])
        following = context[-DRAFT - 1 :]
        pair.target.forward([Rows(cache=cache, token_ids=following, num_outputs=DRAFT + 1)])
        cache.truncate(len(context))
    return cache.kv_bytes


def _resident(name: str) -> int:
    """One of the sizes that the system keeps of this process; 0 where it keeps none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    found = (line.split()[1] for line in lines if line.startswith(name + ":"))
    return 1024 * int(next(found, 0))


if __name__ == "__main__":
    try:
        print(json.dumps(asdict(_measure(**json.loads(sys.argv[1])))))
    except PacelineError as error:
        sys.exit(str(error))
