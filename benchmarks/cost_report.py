"""What came of `verify_cost`: one JSON document, a table, and a figure.

Medians over the repeats; spreads are [lowest, highest]. Ratios of two sides are taken within a
repeat, where both stood next to each other in time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from cost_measure import Decoding, Samples, middle
from cost_model import PassCost, pass_cost, weight_bytes
from memory_probe import Memory
from paceline.bench.figure import COLOURS
from paceline.checkpoint.convert import FileDtype
from released_geometries import Geometry

OURS, THEIRS = "paceline", "llama_cpp"
DIGITS = 4
Document = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Results:
    """Everything that was measured.

    Args:
        prefill: seconds of `prefill_tokens` tokens by side.
        bandwidths: bytes a second that a plain loop reads, one value for each repeat.
        product_rates: products a second by number of rows that the runtime's kernel reaches with
            weights in the cache; the last number of rows is that of a prefill chunk.
        memory: with the drafter, and `memory_alone` without; None where not measured.
        llama: what its process says of itself.
    """

    geometry: Geometry
    dtype: FileDtype
    runtime: str
    threads: int
    context: int
    draft: int
    rows: Samples
    prefill_tokens: int
    prefill: Mapping[str, Sequence[float]]
    decoding: Decoding
    bandwidths: Sequence[float]
    product_rates: Mapping[int, float] = field(default_factory=dict)
    memory: Memory | None = None
    memory_alone: Memory | None = None
    llama: Mapping[str, Any] | None = None

    @property
    def bandwidth(self) -> float:
        return median(self.bandwidths)

    def cost(self, rows: int) -> PassCost:
        """Of a verifying pass."""
        return pass_cost(
            self.geometry.target,
            self.dtype,
            rows=rows,
            context=self.context,
            num_outputs=rows,
        )

    def floor_s(self, rows: int) -> float:
        """The time that reading alone takes."""
        return self.cost(rows).read_bytes / self.bandwidth


# --- The document -------------------------------------------------------------------------------


def document(results: Results, provenance: Mapping[str, Any]) -> Document:
    """All results under stable names; null was not measured."""
    geometry = results.geometry
    return {
        **provenance,
        "geometry": geometry.name,
        "layers": geometry.layers,
        "quant": results.dtype,
        "runtime": results.runtime,
        "threads": results.threads,
        "context": results.context,
        "bandwidth_gbps": _round(results.bandwidth / 1e9),
        "bandwidth_gbps_spread": _spread([x / 1e9 for x in results.bandwidths]),
        **_side(results, OURS),
        **_rounds(results),
        **_memory(results),
        "equal": results.decoding.equal,
        "roofline": _roofline(results),
        "llama_cpp": _llama(results) if results.llama else None,
        "ratios": _ratios(results) if results.llama else None,
    }


def _side(results: Results, side: str) -> Document:
    """The fields that both sides have."""
    rows, prefill = results.rows[side], results.prefill[side]
    speeds = [results.prefill_tokens / seconds for seconds in prefill]
    return {
        "T_s": {str(m): _round(median(values), 6) for m, values in rows.items()},
        "T_s_spread": {str(m): _spread(values, 6) for m, values in rows.items()},
        "v": {str(m): _round(value) for m, value in relative(rows).items()},
        "decode_tps": _round(middle(results.decoding.tps[side])),
        "decode_tps_spread": _spread(results.decoding.tps[side]),
        "prefill_tokens": results.prefill_tokens,
        "prefill_tps": _round(median(speeds)),
        "prefill_tps_spread": _spread(speeds),
    }


def relative(rows: Mapping[int, Sequence[float]]) -> dict[int, float]:
    """v(M): median times in units of that of one row."""
    return {m: median(values) / median(rows[1]) for m, values in rows.items()}


def _rounds(results: Results) -> Document:
    decoding = results.decoding
    one_row = median(results.rows[OURS][1])
    step = middle(decoding.draft_step_s)
    return {
        "draft": results.draft,
        "draft_step_s": _round(step, 7),
        "draft_step_share": None if step is None else _round(step / one_row, 5),
        "round_overhead_s": _round(middle(decoding.outside_s), 7),
        "round_overhead_share": _round(middle(decoding.outside_share), 5),
        "plain_round_overhead_s": _round(middle(decoding.plain_outside_s), 7),
    }


def _memory(results: Results) -> Document:
    used = weight_bytes(results.geometry.target, results.dtype)
    drafter = weight_bytes(results.geometry.drafter, results.dtype)
    memory, alone = results.memory, results.memory_alone
    both = memory is not None and alone is not None
    return {
        "weights_bytes": used,
        "drafter_weights_bytes": drafter,
        "kv_bytes": memory and memory.kv_bytes,
        "peak_rss_bytes": memory and memory.peak_rss_bytes,
        "drafter_rss_bytes": memory.rss_bytes - alone.rss_bytes if both else None,
        "load_s": memory and _round(memory.load_s),
        "load_cold_s": alone and _round(alone.load_s),
        "anonymous_share": memory
        and _round(memory.anonymous_bytes / (used + drafter + memory.kv_bytes)),
        "resident_share": memory and _round(memory.rss_bytes / (used + drafter + memory.kv_bytes)),
        "memory": memory and asdict(memory),
        "memory_without_drafter": alone and asdict(alone),
    }


def _roofline(results: Results) -> Document:
    """Floors by M of reading and of products, and the share of each that was reached."""
    rows = results.rows[OURS]
    times = {m: median(values) for m, values in rows.items()}
    costs = {m: results.cost(m) for m in rows}
    prompt = pass_cost(
        results.geometry.target,
        results.dtype,
        rows=results.prefill_tokens,
        context=0,
        num_outputs=1,
    )
    prefill_s = median(results.prefill[OURS])
    rates = results.product_rates
    return {
        "read_bytes": {str(m): cost.read_bytes for m, cost in costs.items()},
        "gmac": {str(m): _round(cost.macs / 1e9) for m, cost in costs.items()},
        "floor_s": {str(m): _round(results.floor_s(m), 6) for m in rows},
        "share_of_bandwidth": {str(m): _round(results.floor_s(m) / times[m]) for m in rows},
        "gmac_per_s": {str(m): _round(costs[m].macs / times[m] / 1e9, 1) for m in rows},
        "cached_gmac_per_s": {str(m): _round(rate / 1e9, 1) for m, rate in rates.items()},
        "product_floor_s": {
            str(m): _round(costs[m].macs / rates[m], 6) for m in rows if m in rates
        },
        "share_of_products": {
            str(m): _round(costs[m].macs / rates[m] / times[m]) for m in rows if m in rates
        },
        "prefill_gmac": _round(prompt.macs / 1e9),
        "prefill_gmac_per_s": _round(prompt.macs / prefill_s / 1e9, 1),
        "prefill_share_of_products": (
            _round(prompt.macs / rates[max(rates)] / prefill_s) if rates else None
        ),
        "decode_share_of_bandwidth": _round(
            (middle(results.decoding.tps[OURS]) or 0.0) * results.floor_s(1)
        ),
    }


def _llama(results: Results) -> Document:
    """The same fields; what llama.cpp does not have, or what was not measured, is null."""
    assert results.llama is not None
    said = dict(results.llama)
    memory = said.pop("memory", {})
    return {
        **_side(results, THEIRS),
        "draft_step_s": None,
        "round_overhead_s": None,
        "weights_bytes": weight_bytes(results.geometry.target, results.dtype),
        "peak_rss_bytes": memory.get("VmHWM"),
        "drafter_rss_bytes": None,
        **said,
        "memory": memory,
    }


def _ratios(results: Results) -> Document:
    """How many times as fast as llama.cpp."""
    ours, theirs = results.rows[OURS], results.rows[THEIRS]
    passes = {m: _paired(theirs[m], ours[m]) for m in ours}
    tps = results.decoding.tps
    return {
        "T": {str(m): _round(median(values)) for m, values in passes.items()},
        "T_spread": {str(m): _spread(values) for m, values in passes.items()},
        "decode": _round(median(_paired(tps[OURS], tps[THEIRS]))),
        "decode_spread": _spread(_paired(tps[OURS], tps[THEIRS])),
        "prefill": _round(median(_paired(results.prefill[THEIRS], results.prefill[OURS]))),
        "prefill_spread": _spread(_paired(results.prefill[THEIRS], results.prefill[OURS])),
    }


def _paired(first: Sequence[float], second: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(first, second, strict=True)]


def _round(value: float | None, digits: int = DIGITS) -> float | None:
    return None if value is None else round(value, digits)


def _spread(values: Sequence[float], digits: int = DIGITS) -> list[float] | None:
    return [round(min(values), digits), round(max(values), digits)] if values else None


# --- The table ----------------------------------------------------------------------------------


def table(found: Document) -> list[str]:
    """Lines of text: a row for each M, then the rest of what people look for."""
    theirs = found["llama_cpp"]
    header = ["M", "ms", "(spread)", "v", "of bandwidth", "of products"]
    header += ["llama.cpp ms", "v", "ratio"] if theirs else []
    rows = [header, *(_table_row(found, m) for m in found["T_s"])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    return [*lines, "", *_summary_lines(found)]


def _table_row(found: Document, m: str) -> list[str]:
    low, high = found["T_s_spread"][m]
    roofline, theirs = found["roofline"], found["llama_cpp"]
    row = [
        m,
        f"{1e3 * found['T_s'][m]:.2f}",
        f"({1e3 * low:.2f} to {1e3 * high:.2f})",
        f"{found['v'][m]:.2f}",
        f"{100 * roofline['share_of_bandwidth'][m]:.0f} %",
        _percent(roofline["share_of_products"].get(m)),
    ]
    if theirs:
        row += [
            f"{1e3 * theirs['T_s'][m]:.2f}",
            f"{theirs['v'][m]:.2f}",
            f"{found['ratios']['T'][m]:.2f}",
        ]
    return row


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def _summary_lines(found: Document) -> list[str]:
    ratios = found["ratios"] or {}
    lines = [
        f"reading: {found['bandwidth_gbps']:.1f} GB/s",
        f"decode: {found['decode_tps']:.1f} tok/s, "
        f"{100 * found['roofline']['decode_share_of_bandwidth']:.0f} % of the bandwidth"
        + _times(ratios.get("decode")),
        f"prefill of {found['prefill_tokens']} tokens: {found['prefill_tps']:.0f} tok/s"
        + _times(ratios.get("prefill")),
    ]
    if found["draft_step_s"] is not None:
        lines += [
            f"draft step: {1e3 * found['draft_step_s']:.3f} ms, "
            f"{100 * found['draft_step_share']:.2f} % of T(1)",
            f"outside the runtime: {1e6 * found['round_overhead_s']:.0f} us a round, "
            f"{100 * found['round_overhead_share']:.2f} % of it",
            f"text equal with drafting off and on: {'yes' if found['equal'] else 'NO'}",
        ]
    if found["peak_rss_bytes"] is not None:
        lines += [
            f"load: {found['load_s']:.2f} s, {found['load_cold_s']:.2f} s from the disk",
            f"resident: {found['memory']['rss_bytes'] / 1e6:.0f} MB, "
            f"{found['resident_share']:.2f} of weights in use and KV, "
            f"{found['anonymous_share']:.2f} without pages of files; at most "
            f"{found['peak_rss_bytes'] / 1e6:.0f} MB; the drafter "
            f"{found['drafter_rss_bytes'] / 1e6:.0f} MB",
        ]
    return lines


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f", {ratio:.2f} x llama.cpp"


# --- The figure ---------------------------------------------------------------------------------


def draw(found: Document, path: Path) -> None:
    """v(M) of both sides, and their times over the floor that reading the weights sets."""
    from matplotlib.figure import Figure

    sides = [("Paceline", found)]
    if found["llama_cpp"]:
        sides.append(("llama.cpp", found["llama_cpp"]))
    figure = Figure(figsize=(9, 4), layout="constrained")
    costs, times = figure.subplots(1, 2)
    floor = found["roofline"]["floor_s"]
    for (name, side), colour, marker in zip(sides, COLOURS, "os", strict=False):
        rows = [int(m) for m in side["T_s"]]
        costs.plot(rows, list(side["v"].values()), marker=marker, color=colour, label=name)
        middles = [1e3 * value for value in side["T_s"].values()]
        times.plot(rows, middles, marker=marker, color=colour, label=name)
        spreads = [
            [1e3 * x for x in ends] for ends in zip(*side["T_s_spread"].values(), strict=True)
        ]
        times.fill_between(rows, *spreads, color=colour, alpha=0.2, linewidth=0)
    rows = [int(m) for m in floor]
    one_row = found["T_s"]["1"]
    floors = [("--", "reading the weights", floor)]
    if products := found["roofline"]["product_floor_s"]:
        floors.append((":", "products from the cache", products))
    for line, label, values in floors:
        settings = {"color": "black", "linestyle": line, "linewidth": 1, "label": label}
        costs.plot(rows, [value / one_row for value in values.values()], **settings)
        times.plot(rows, [1e3 * value for value in values.values()], **settings)
    costs.set_ylabel("v(M), own one-row pass = 1")
    times.set_ylabel("ms a pass")
    for axes in (costs, times):
        axes.set_xlabel("rows M")
        axes.set_ylim(bottom=0)
        axes.xaxis.get_major_locator().set_params(integer=True)
    costs.legend(frameon=False)
    figure.suptitle(title(found))
    figure.savefig(path, dpi=150)


def title(found: Document) -> str:
    return (
        f"{found['geometry']}, {found['layers']} layers, {found['quant']}, "
        f"{found['threads']} threads, {found['bandwidth_gbps']:.0f} GB/s"
    )
