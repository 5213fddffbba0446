"""What is printed and documented about installing: from a clone or a wheel, no other way."""

from __future__ import annotations

import re
from pathlib import Path

PROJECT = Path(__file__).parents[3]
#: `pip install ray-jobs`, with whatever options and extras: no package index has it.
FROM_AN_INDEX = re.compile(r"pip install(?: -\S+)* [\"']?ray[-_]jobs(?![-_.\w])")


def test_no_recipe_names_a_package_that_no_index_has() -> None:
    folders = [PROJECT / "ray_jobs" / "cli", PROJECT / "ray_jobs" / "client", PROJECT / "docs"]
    texts = [path for folder in folders for path in folder.glob("**/*.[pm][yd]")]
    found = [
        f"{path.relative_to(PROJECT)}: {match[0]}"
        for path in [PROJECT / "README.md", *texts]
        for match in FROM_AN_INDEX.finditer(path.read_text())
    ]
    assert found == []
