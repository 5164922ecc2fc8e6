"""Run some of the run_*.py on the model in a folder, in one process whose peak of memory is its own; prints what came out."""

import functools
import importlib
import json
import resource
import sys

from helpers import load_model


def main(folder: str, *names: str) -> dict:
    once, found = functools.cache(load_model), {}
    for name in names:
        part = importlib.import_module(f"run_{name}")
        part.load_model = once  # they share the model
        found[name] = part.main(folder)
    unit = 1 if sys.platform == "darwin" else 1024
    return found | {"peak bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
