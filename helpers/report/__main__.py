"""`python -m helpers.report`: execute the notebooks and write them as pages."""

from helpers.core.files import run_main
from helpers.report.pages import main

run_main(main)
