"""The tests that docs/reliability.md names exist and are marked as slow if it says so."""

import re
from pathlib import Path

HERE = Path(__file__).parent


def test_every_row_names_its_tests():
    text = (HERE.parent / "docs/reliability.md").read_text()
    rows = [
        line
        for line in text.partition("## What was tried")[2].splitlines()
        if re.match(r"\| [^*|]+ \| [^|]", line)
    ]
    rows = [row for row in rows if not row.startswith("| fault")]
    assert len(rows) > 30
    for row in rows:
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`(\*?)", row)
        assert named, row
        for file, name, star in named:
            found = re.search(rf"((?:^[@)\]}} ].*\n|^\[.*\n)*)^def {name}\(", (HERE / file).read_text(), re.M)
            assert found, f"{file} has no {name}"
            assert bool(star) == bool(re.search(r"^@pytest.mark.slow", found[1], re.M)), (file, name)
