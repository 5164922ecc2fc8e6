"""Names of features: written by a reader of their cards, never generated. They are kept in `data/names.json`, by the
dictionary's hash: {hash: {number: {"name": …, "group": …}}, "hardest": {hash: {number: why it got no name}},
"summary": {hash: {group: what the model knows of it}}}."""

import json
from importlib.resources import files

from helpers.features.dictionary import Dictionary


def feature_names(dictionary: Dictionary, what: str = "name") -> dict:
    """The `name` or the `group` of every feature that has one, why the `hardest` have none, or the `summary` of each
    group; empty for a dictionary that nobody has read."""
    data = json.loads((files("helpers") / "data" / "names.json").read_text(encoding="utf-8"))
    if what == "summary":
        return data[what].get(dictionary.hash, {})
    rows = (data["hardest"] if what == "hardest" else data).get(dictionary.hash, {})
    return {int(number): row if what == "hardest" else row[what] for number, row in rows.items()}
