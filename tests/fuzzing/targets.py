"""All targets, by name."""

from __future__ import annotations

from fuzzing import answers, decoders, planted, replies
from fuzzing.form import Target, headed

TARGETS: dict[str, Target] = {**decoders.TARGETS, **replies.TARGETS, **answers.TARGETS}
PLANTED: dict[str, Target] = planted.TARGETS
#: So many seeds of each target are enough where all of them share a process.
FEW = 8


def find(name: str) -> Target:
    """Returns a target, a planted one too, or ``"each"``: all targets in one, by their first byte."""
    return _each() if name == "each" else {**TARGETS, **PLANTED}[name]


def _each() -> Target:
    targets = list(TARGETS.values())

    def check(data: bytes) -> None:
        number, data = headed(data)
        targets[number % len(targets)].check(data)

    seeds = [
        bytes([number]) + seed
        for number, target in enumerate(targets)
        for seed in target.seeds[:: len(target.seeds) // FEW or 1]
    ]
    return Target(check, seeds)
