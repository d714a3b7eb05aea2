"""`paceline forget`: delete the answers that `--remember` has kept."""

from __future__ import annotations

from paceline.cli import environment


def forget() -> None:
    """Delete the earlier answers that --remember has kept to draft from."""
    from paceline.speculative.earlier import forget

    folder = environment.cache_folder()
    count = forget(folder)
    print(f"deleted {count} file{'' if count == 1 else 's'} of earlier answers in {folder}.")
