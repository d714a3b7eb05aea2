"""`paceline plan`: what a model will need in memory, against what is free."""

from __future__ import annotations

from typing import Annotated

import typer

from paceline.cli import options

DEFAULT_CONTEXT = 4096


def plan(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="Hugging Face folder, its config.json is enough, or GGUF file of a Gemma 4. "
            "Default: the pair that ships.",
        ),
    ] = None,
    drafter: options.Drafter = "auto",
    context: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens that the KV cache is to hold. Default: 4096 or less."),
    ] = None,
    dtype: options.DtypeOption = options.Dtype.FLOAT32,
) -> None:
    """Tell what a model needs in memory before it is loaded.

    The exit status is 1 if it cannot fit.
    """
    from paceline.config import check_range
    from paceline.loading import display_name, find_target, read_configs
    from paceline.memory import MemoryPlan, gigabytes, num_weights, plan_memory

    path = find_target(model)
    target, drafter_config = read_configs(path, None if drafter == "none" else drafter)
    if context is None:
        context = min(DEFAULT_CONTEXT, target.context_length)
    check_range("--context", context, 1, target.context_length)
    needs: MemoryPlan = plan_memory(target, drafter_config, dtype=dtype.value, context=context)
    lines = [
        ("model", f"{display_name(path)}, {target.num_layers} layers", dtype.value),
        ("target", f"{num_weights(target):,} weights", gigabytes(needs.target_bytes)),
        (
            "drafter",
            f"{num_weights(drafter_config):,} weights" if drafter_config else "none",
            gigabytes(needs.drafter_bytes),
        ),
        ("KV cache", f"{context:,} tokens", gigabytes(needs.kv_bytes)),
        ("needed", "", gigabytes(needs.needed_bytes)),
        ("free", "", "unknown" if needs.free_bytes is None else gigabytes(needs.free_bytes)),
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    for name, what, size in lines:
        print(f"{name:<{widths[0]}}  {what:<{widths[1]}}  {size:>{widths[2]}}")
    needs.check()
