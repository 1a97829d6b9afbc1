"""The README's Python example runs as it stands, but for the address and the model's name."""

import re
import subprocess
import sys
from pathlib import Path

from tests.e2e.commands import Served

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_the_example_runs(served: Served) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert "http://127.0.0.1:8000" in example
    code = example.replace("http://127.0.0.1:8000", served.url).replace('"dpo', f'"{served.model}')
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "'best_of': 8" in done.stdout
