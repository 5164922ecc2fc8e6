"""`python -m helpers.report`: execute the notebooks and write them as pages."""

from helpers.report.pages import main

main()
