"""One thread for tensors of the size that tests use.

Two threads that wait for each other actively make tiny models up to a hundred times slower where
something else keeps the processors busy. Tests of thread counts set their own.

What the program keeps between runs goes into a folder of the test's own.
"""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


from paceline.runtime.native import load  # noqa: E402 - behind the variable

load.default_threads = lambda: 1
