"""The command: ``scripts/fuzz``."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from fuzzing.targets import PLANTED, TARGETS, find

TESTS = Path(__file__).resolve().parent.parent
#: What an input may cost: seconds, and megabytes for the whole process.
SECONDS, MEGABYTES = 10, 1024
#: The longest input, in bytes.
LONGEST = 4096
#: How long a process may take beside its time box, in seconds: it begins with imports, and ends with the last input.
BESIDE = 60


class Result(NamedTuple):
    """What came of fuzzing one target.

    Attributes:
        executions: how many inputs were tried.
        features: the kinds of ways through the code that were seen.
        new: how many inputs were added to the corpus.
        findings: each input for which the target failed.
        log: the end of what the process said.
    """

    executions: int
    features: int
    new: int
    findings: list[bytes]
    log: str


def fuzz(name: str, seconds: int, folder: Path, limit: int = SECONDS) -> Result:
    """Fuzzes a target in a process of its own for so many seconds, or until it has found something.

    Args:
        folder: where the corpus is, and what is found.
        limit: what an input may take, in seconds.
    """
    corpus, seeds, found = (folder / part for part in ("corpus", "seeds", "found"))
    for place in (corpus, seeds, found):
        place.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(find(name).seeds):
        (seeds / f"{number:04}").write_bytes(seed)
    known = set(found.iterdir())
    log = folder / "log"
    command = [
        *(sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-m", "fuzzing.worker", name),
        *(f"-max_total_time={seconds}", f"-timeout={limit}", f"-rss_limit_mb={MEGABYTES}", f"-max_len={LONGEST}"),
        *(f"-artifact_prefix={found}/", "-print_final_stats=1", str(corpus), str(seeds)),
    ]
    # The variables of the environment are looked through for each request, and may hold a proxy.
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "LD_LIBRARY_PATH") if name in os.environ}
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    with open(log, "wb") as output:
        process = subprocess.run(
            command, stdout=output, stderr=output, env=environment, timeout=seconds + limit + BESIDE, check=False
        )
    said = log.read_text(errors="replace")
    findings = [path.read_bytes() for path in sorted(set(found.iterdir()) - known)]
    if process.returncode and not findings:
        raise RuntimeError(f"{name} could not be fuzzed:\n{said[-2000:]}")
    features = re.findall(r"\bft: (\d+)", said)
    counted = dict(re.findall(r"^stat::(\w+):\s+(\d+)", said, re.MULTILINE))
    return Result(
        int(counted.get("number_of_executed_units", 0)),
        int(features[-1]) if features else 0,
        int(counted.get("new_units_added", 0)),
        findings,
        said[-4000:],
    )


@contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        yield given
    else:
        with TemporaryDirectory(prefix="fuzz-") as made:
            yield Path(made)


def main(arguments: list[str] | None = None) -> int:
    """Fuzzes the targets one after the other; returns 1 where one of them has failed."""
    parser = argparse.ArgumentParser(
        prog="scripts/fuzz", description="Looks for bytes that a decoder or parser does not stand, by atheris."
    )
    parser.add_argument("target", nargs="*", help=f"one of {', '.join(TARGETS)}; all of them unless one is named")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default: %(default)s)")
    parser.add_argument(
        "--corpus", type=Path, metavar="DIR", help="keeps the inputs of interest there, and begins with them"
    )
    given = parser.parse_args(arguments)
    if unknown := [name for name in given.target if name not in TARGETS and name not in PLANTED]:
        parser.error(f"there is no target {unknown[0]}: {', '.join(TARGETS)}")
    failed = False
    print(
        f"{'target':<16}{'seconds':>9}{'executions':>12}{'features':>10}{'new inputs':>12}{'findings':>10}", flush=True
    )
    with _folder(given.corpus) as folder:
        for name in given.target or TARGETS:
            began = time.monotonic()
            result = fuzz(name, given.seconds, folder / name)
            row = f"{time.monotonic() - began:9.0f}{result.executions:12}{result.features:10}{result.new:12}"
            print(f"{name:<16}{row}{len(result.findings):10}", flush=True)
            for finding in result.findings:
                failed = True
                print(f"\n{result.log}\n\nThe input: {finding!r}\n", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
