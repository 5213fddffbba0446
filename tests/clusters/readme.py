"""The README's examples, cut out of it, so that they can be run as they are printed."""

from __future__ import annotations

import re
from pathlib import Path

PROJECT = Path(__file__).parents[2]
PRINTED_ADDRESS = "http://127.0.0.1:8265"

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(heading: str, language: str) -> list[str]:
    """Return the code blocks of a section of the README."""
    _, found, rest = (PROJECT / "README.md").read_text().partition(f"\n## {heading}\n")
    assert found, f"the README has no section {heading!r}"
    section = rest.partition("\n## ")[0]
    return [match[2] for match in _BLOCK.finditer(section) if match[1] == language]


def script(heading: str, address: str, without: set[str]) -> str:
    """Return the shell commands of a section, for the cluster at an address.

    Args:
        without: Lines that a test has done otherwise. Each must be there.
    """
    lines = "".join(blocks(heading, "bash")).splitlines()
    assert without <= set(lines), without - set(lines)
    kept = "\n".join(line for line in lines if line not in without)
    return kept.replace(PRINTED_ADDRESS, address) + "\n"
