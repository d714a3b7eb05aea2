"""One thread for tensors of the size that tests use.

Two threads that wait for each other actively make tiny models up to a hundred times slower where
something else keeps the processors busy. Tests of thread counts set their own.
"""

import os
from contextlib import suppress

os.environ.setdefault("OMP_NUM_THREADS", "1")

with suppress(ModuleNotFoundError):  # not built
    from paceline.runtime.native import load

    load.default_threads = lambda: 1
