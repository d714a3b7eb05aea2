"""What the adaptive draft length itself takes: microseconds a round, to plan and to learn.

    python benchmarks/decision_cost.py

Runs simulated answers and measures each call. Others on the machine only ever add time: medians
are reported beside means. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

from paceline.bench.provenance import provenance
from paceline.speculative.acceptance import Profiles
from paceline.speculative.adaptive import AdaptiveDraftLength
from paceline.speculative.controller import DraftContext, DraftPlan, RoundOutcome
from paceline.speculative.simulation import made_up, simulate
from simulate_controller import MACHINES, PROFILES

TARGET_US = 20.0


class Timed:
    """A policy with a stop-watch on both of its calls."""

    def __init__(self, policy: AdaptiveDraftLength) -> None:
        self._policy = policy
        self.plan_s: list[float] = []
        self.observe_s: list[float] = []

    def plan(self, context: DraftContext) -> DraftPlan:
        started = time.perf_counter()
        plan = self._policy.plan(context)
        self.plan_s.append(time.perf_counter() - started)
        return plan

    def observe(self, outcome: RoundOutcome) -> None:
        started = time.perf_counter()
        self._policy.observe(outcome)
        self.observe_s.append(time.perf_counter() - started)


def measure(name: str, num_texts: int, num_tokens: int) -> dict[str, object]:
    """Answers of one kind in one engine, on the machine with the cheapest rows: longest drafts."""
    machine = MACHINES[0]
    costs, profiles = machine.calibrated(), Profiles()
    plan_s, observe_s, lengths = [], [], []
    for number in range(num_texts):
        timed = Timed(AdaptiveDraftLength(costs, profiles))
        run = simulate(timed, made_up(PROFILES[name], num_tokens, number), machine, number)
        plan_s += timed.plan_s
        observe_s += timed.observe_s
        lengths += run.lengths
    both = [sum(pair) for pair in zip(plan_s, observe_s, strict=True)]
    return {
        "text": name,
        "rounds": len(both),
        "draft_tokens_a_round": round(statistics.fmean(lengths), 2),
        "plan_us": round(1e6 * statistics.median(plan_s), 1),
        "observe_us": round(1e6 * statistics.median(observe_s), 1),
        "round_us": round(1e6 * statistics.median(both), 1),
        "mean_round_us": round(1e6 * statistics.fmean(both), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=400, help="of each text")
    asked = parser.parse_args()
    rows = [measure(name, asked.texts, asked.tokens) for name in PROFILES]
    for row in rows:
        print(
            f"{row['text']:10} {row['draft_tokens_a_round']:5} tokens a draft: plan "
            f"{row['plan_us']:5} us, learn {row['observe_us']:5} us, round {row['round_us']:5} us"
            f" (mean {row['mean_round_us']} us, wanted: {TARGET_US})"
        )
    print(json.dumps({"decision_cost": rows, "provenance": provenance(threads=1)}))


if __name__ == "__main__":
    main()
