"""Order per key with real processes and databases."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path


def test_the_page_on_order_is_true(tmp_path: Path) -> None:
    """The files that docs/order.md shows are written as they stand, and its test passes."""
    page = (Path(__file__).parents[2] / "docs" / "order.md").read_text(encoding="utf-8")
    files = dict(re.findall(r"<!-- file: (\S+) -->\n```python\n(.*?)```", page, re.DOTALL))
    assert set(files) == {"moves.py", "test_moves.py"}
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-q", "test_moves.py"]
    run = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "1 passed" in run.stdout
