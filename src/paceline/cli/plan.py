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
    runtime: options.RuntimeOption = options.Runtime.AUTO,
    dtype: options.DtypeOption = None,
) -> None:
    """Tell what a model needs in memory before it is loaded.

    The exit status is 1 if it cannot fit.
    """
    from paceline.config import check_range
    from paceline.loading import choose_runtime, display_name, find_target, read_outline
    from paceline.memory import gigabytes, num_weights, plan_memory

    name = None if dtype is None else dtype.value
    chosen = choose_runtime(runtime.value, name)
    path = find_target(model)
    pair = read_outline(path, None if drafter == "none" else drafter)
    if context is None:
        context = min(DEFAULT_CONTEXT, pair.target.context_length)
    check_range("--context", context, 1, pair.target.context_length)
    needs = plan_memory(pair, runtime=chosen, dtype=name, context=context)
    held = "the types of the file" if chosen == "native" else name or "float32"
    lines = [
        ("model", f"{display_name(path)}, {pair.target.num_layers} layers", ""),
        ("runtime", f"{chosen}, weights in {held}", ""),
        ("target", f"{num_weights(pair.target):,} weights", gigabytes(needs.target_bytes)),
        (
            "drafter",
            f"{num_weights(pair.drafter):,} weights" if pair.drafter else "none",
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
