"""``scripts/test --lowest`` installs what setup.cfg says, and leaves out no more than it says."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def lowest(what: str) -> list[str]:
    ran = subprocess.run(
        [sys.executable, ROOT / "scripts" / "lowest", what], capture_output=True, text=True, check=True, timeout=60
    )
    return ran.stdout.splitlines()


def test_every_requirement_is_installed_in_its_lowest_version() -> None:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    extras = dict(settings["options.extras_require"])
    del extras["dev"]
    required = re.findall(
        r"^(\S+)>=(\S+)$", "\n".join([settings["options"]["install_requires"], *extras.values()]), re.M
    )
    package, *lines = lowest("requirements")
    assert package == f"-e .[{','.join(extras)}]"
    assert {f"{name}=={version}" for name, version in required} == {
        line for line in lines if "==" in line and ";" not in line
    }
    assert "requests==2.32.2" in lines
    assert "pytest>=8" in lines


def test_what_is_left_out_names_tests_that_are_there() -> None:
    for argument in lowest("left-out"):
        _, path, test = re.fullmatch(r"--(ignore|deselect)=([^:]+)(?:::(\w+))?", argument).groups()  # type: ignore[union-attr]
        assert f"def {test or 'test_'}" in (ROOT / path).read_text(encoding="utf-8")
