"""Save any model that load_model takes as safetensors, with its tokenizer: `python -m helpers.build.convert MODEL FOLDER`."""

import argparse
from pathlib import Path

from helpers.core.files import absolute, run_main
from helpers.core.model import load_parts


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a folder or a hub checkpoint")
    parser.add_argument("folder", type=Path, help="where its safetensors go")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)  # a file in its place is told
    for part in load_parts(absolute(options.model)):
        part.save_pretrained(options.folder)


if __name__ == "__main__":
    run_main(main)
