"""Going: what the model tour measures stands in its notebook, in `core.baselines` and in `core.paths`."""

from helpers.core import baselines
from helpers.core.stories import CLASSES

UNIVERSAL = CLASSES
check_stories = baselines.check_stories
baseline_columns = baselines.ngram_columns
