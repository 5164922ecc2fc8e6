"""The notebooks' stored outputs can tell a trained model from a random one: rerun on the twin, they differ."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("notebook", ["01_model_tour", "02_mlp_neurons", "05_handcrafted_weights"])
def test_rerun_on_the_random_twin_a_notebook_runs_but_its_outputs_differ(notebook):
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--nbval",
        f"notebooks/{notebook}.ipynb",
        "--color=no",
        "-p",
        "no:cacheprovider",
    ]
    setting = {"TINYSTORIES_MODEL": "random:embedded"}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | setting, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-2000:]
    outcomes = re.findall(r"^Cell \d+: (.*)$", done.stdout, re.MULTILINE)
    assert len(outcomes) >= 10
    assert [outcome for outcome in outcomes if outcome != "Cell outputs differ"] == []
    assert "does not hold" in done.stdout
