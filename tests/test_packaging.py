"""What an installation takes and holds."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(("target", "installs_torch"), [("demo", False), ("setup", True)])
def test_only_the_tests_need_torch(tmp_path, target, installs_torch):
    """`make --dry-run` in a fresh clone."""
    command = ["make", "--dry-run", target, f"VENV={tmp_path / 'venv'}"]
    planned = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "--editable ." in planned
    assert ("torch==" in planned) == installs_torch


@pytest.mark.slow  # compiles everything
def test_the_wheel_holds_the_pair_the_types_and_no_tests(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    settings = ["--config-settings", f"build-dir={tmp_path / 'build'}"]
    subprocess.run([*build, *settings, "--wheel-dir", str(tmp_path), str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("paceline-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    folders = {name.split("/")[0] for name in names}
    assert all(folder == "paceline" or folder.endswith(".dist-info") for folder in folders)
    extensions = [name for name in names if name.startswith("paceline/_native.")]
    assert len(extensions) == 2  # compiled, and its types
    source = {
        f"paceline/{file.relative_to(ROOT / 'src' / 'paceline')}"
        for file in tracked("src/paceline")
    }
    assert source <= set(names)
    assert "paceline/py.typed" in source
    assert any(name.startswith("paceline/models/default/") for name in source)


def tracked(folder):
    """Files of the package; others may lie there too."""
    command = ["git", "ls-files", "-z", folder]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]
