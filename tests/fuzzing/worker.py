"""Fuzzes one target in this process: ``python -m fuzzing.worker TARGET`` and libFuzzer's own arguments."""

from __future__ import annotations

import sys

import atheris


def main() -> None:
    name = sys.argv.pop(1)
    with atheris.instrument_imports(include=["berlin_chat"]):  # which must not be imported yet
        from berlin_chat.http import login
        from fuzzing.targets import PLANTED, find
    login.uniform = lambda low, high: 0.0  # type: ignore[assignment]  # a refused login is repeated at once
    check = atheris.instrument_func(PLANTED[name].check) if name in PLANTED else find(name).check
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
