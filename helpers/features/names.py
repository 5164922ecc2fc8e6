"""Names of features: written by a reader of their cards, never generated. They are kept in `data/names.json`, by the
dictionary's hash: {hash: {number: {"name": …, "group": …}}, "hardest": {hash: {number: why it got no name}}}."""

import json
from importlib.resources import files

from helpers.features.dictionary import Dictionary


def feature_names(dictionary: Dictionary, what: str = "name") -> dict[int, str]:
    """The `name` or the `group` of every feature that has one, or why the `hardest` have none; empty for a dictionary
    that nobody has read."""
    data = json.loads((files("helpers") / "data" / "names.json").read_text(encoding="utf-8"))
    if what == "hardest":
        return {int(number): why for number, why in data["hardest"].get(dictionary.hash, {}).items()}
    return {int(number): row[what] for number, row in data.get(dictionary.hash, {}).items()}
