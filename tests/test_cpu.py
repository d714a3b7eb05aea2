"""How many threads a model runs on: cores, not their second threads, within what is allowed."""

from __future__ import annotations

import os

import pytest

from paceline import cpu


def topology(folder, cores, name="core_cpus_list"):
    """A machine whose logical processors belong to these cores."""
    for processor, core in enumerate(cores):
        place = folder / f"cpu{processor}" / "topology"
        place.mkdir(parents=True)
        if core is not None:
            (place / name).write_text(f"{core}\n")
    return folder


@pytest.mark.parametrize(
    ("cores", "usable", "count"),
    [
        (["0", "1"], {0, 1}, 2),
        (["0,2", "1,3", "0,2", "1,3"], {0, 1, 2, 3}, 2),
        (["0,2", "1,3", "0,2", "1,3"], {0, 2}, 1),  # two threads of one core
        (["0-1", "0-1", "2-3", "2-3"], {1, 2}, 2),
        ([None, None, None], {0, 1, 2}, 3),  # a system that tells nothing
    ],
)
@pytest.mark.parametrize("name", cpu.SAME_CORE)
def test_cores_count_once(tmp_path, cores, usable, count, name):
    assert cpu.physical_cores(usable, topology(tmp_path, cores, name)) == count


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "50000 0\n"}, None),
        ({"cpu.max": "nonsense"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n"}, None),
    ],
)
def test_the_container_limits(tmp_path, files, quota):
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert cpu.processor_quota(tmp_path) == quota


@pytest.mark.parametrize(
    ("cores", "quota", "threads"), [(8, None, 8), (8, 2.5, 2), (2, 16.0, 2), (4, 0.5, 1)]
)
def test_threads_are_cores_within_the_quota(monkeypatch, cores, quota, threads):
    monkeypatch.setattr(cpu, "physical_cores", lambda processors: cores)
    monkeypatch.setattr(cpu, "processor_quota", lambda: quota)
    assert cpu.default_threads() == threads


def test_processors_that_may_not_be_used_do_not_count(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3}, raising=False)
    assert cpu.usable_processors() == {3}
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert cpu.usable_processors() == {0, 1, 2}


def test_this_machine_has_a_processor():
    assert cpu.processor_name()
    assert 1 <= cpu.physical_cores(cpu.usable_processors()) <= (os.cpu_count() or 1)
    assert cpu.default_threads() >= 1
