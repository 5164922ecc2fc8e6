"""How nbval compares the notebooks' stored outputs with those of a rerun: `pytest --nbval notebooks`."""

import os
import re
import tempfile
from pathlib import Path

import pytest

_scratch = tempfile.TemporaryDirectory(prefix="workbook-notebooks-")
os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])  # kernels import the helpers beside the notebooks
os.environ.setdefault("TINYSTORIES_RESULTS", _scratch.name)
os.environ["TINYSTORIES_LARGER"] = "stored"  # notebook 08 takes minutes to measure: its stored numbers are read
for _name in ("TINYSTORIES_MODEL", "TINYSTORIES_STORIES", "TINYSTORIES_COUNT"):
    os.environ.pop(_name, None)  # what is stored was made without them

PROGRESS = re.compile(r"\[\d+:\d+[<,]")  # a tqdm bar's "[00:00<?, ?it/s]"; its text holds timings


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Leave HTML out of the comparison: figures' twins and tables say the same in their plain text, which is compared."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("text/html", "stderr")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Leave progress bars out on both sides: stored notebooks hold none, a rerun shows them again."""
    if hasattr(item, "compare_outputs"):
        compare = item.compare_outputs
        item.compare_outputs = lambda *sides: compare(
            *([out for out in side if not _is_bar(out)] for side in sides)
        )


def _is_bar(output: dict) -> bool:
    return PROGRESS.search(str(output.get("data", {}).get("text/plain", ""))) is not None
