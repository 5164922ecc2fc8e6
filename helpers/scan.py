"""`python -m helpers.scan`: the statistics of every neuron over a corpus of any size (`helpers.build.corpus_scan`).

As a name, `helpers.scan` is the function (`from helpers import scan`); this file is run and never imported.
"""

from helpers.build.corpus_scan import main
from helpers.core.files import run_main

if __name__ == "helpers.scan":
    raise ImportError("helpers.scan is a function: from helpers import scan (this file is the command's).")
if __name__ == "__main__":
    run_main(main)
