"""Cards of features and neurons for readers who are not told what they are: the numbers of notebook 06's blind reading.

    python tests/blind_cards.py make FOLDER

writes FOLDER/cards.md (40 cards without name, rule, kind, number and costs, each with six pairs of unseen places, and 8 of
features that have been read) and FOLDER/key.json. Each reader writes FOLDER/reader-N.json, {card: {"said": "yes" | "partly" |
"no", "read": what the part is for, "places": ["a" | "b", …]}}. Then

    python tests/blind_cards.py match FOLDER

writes FOLDER/match.md: beside what each reader wrote, five names of parts of that kind; who scores it writes
FOLDER/match.json, {line: number of the name that says the same}. And

    python tests/blind_cards.py score FOLDER

writes notebooks/06_readings.json.
"""

import json
import random
import sys
from pathlib import Path

import torch

from helpers import load_model, load_stories, scan
from helpers.core.files import ROOT, write_json, write_text
from helpers.core.parts import Parts
from helpers.features.card import activity, cards
from helpers.features.dictionary import load_dictionary
from helpers.features.names import feature_names

PAIRS, SEED, DRAWN = 6, 20, {"features": 20, "neurons": 20, "named features": 8}
marked = lambda tokens, at: "".join(f"**[{t}]**" if i == at else t for i, t in enumerate(tokens))  # noqa: E731


def places(text, values, least, draw):
    """Pairs of unseen places, one where the part fires and one where it does not (at the same word where there is one), and
    which of the two it is."""
    loud, quiet = ((values > least).nonzero()[:, 0].tolist(), (values <= least).nonzero()[:, 0].tolist())
    by_word = {}
    for i in quiet:
        by_word.setdefault(int(text.token[i]), []).append(i)
    chosen = [
        (i, draw.choice(by_word.get(int(text.token[i]), quiet))) for i in draw.sample(loud, min(PAIRS, len(loud)))
    ]
    return [(pair, "a") if draw.random() < 0.5 else (pair[::-1], "b") for pair in chosen]


def around(text, i):
    """The words before a place and the word at it."""
    first = max(i - 12, int((text.story == text.story[i]).nonzero()[0]))
    pieces = [text.model.tokenizer.decode([t]).replace("\n", " ⏎ ") for t in text.token[first : i + 1].tolist()]
    return marked(pieces, len(pieces) - 1)


def make(folder):
    """Draw the parts, shuffle them, write the cards and the key."""
    model, draw = load_model(), random.Random(SEED)
    dictionary, explore, confirm = (
        load_dictionary(model), *(scan(model, load_stories(split=half), positions=2048) for half in ("explore", "confirm")),
    )  # fmt: skip
    names, made = feature_names(dictionary), []
    rest = [i for i in range(len(dictionary)) if i not in names]
    drawn = {"named features": draw.sample(sorted(names), DRAWN["named features"])}
    drawn |= {"features": draw.sample(sorted({*rest, *names} - {*drawn["named features"]}), DRAWN["features"])}
    drawn |= {"neurons": draw.sample(range(model.cfg.d_mlp), DRAWN["neurons"])}
    for kind, numbers in drawn.items():
        basis = None if kind == "neurons" else dictionary
        parts = Parts(kind, "neuron" if kind == "neurons" else "feature", torch.tensor(numbers), basis=basis)
        own, unseen = activity(explore, parts), activity(confirm, parts)
        least = torch.zeros(len(parts)) if basis else own.mean(0) + 2 * own.std(0)
        made += [
            (kind, one, places(confirm, unseen[:, k], least[k], draw))
            for k, one in enumerate(cards(explore, parts, confirm))
        ]
    draw.shuffle(made)
    lines, key = [], {}
    for number, (kind, one, pairs) in enumerate(made, 1):
        told = one.lines()
        lines += [
            f"\n## Card {number}\n\nWhere it fires, from loud to quiet (the marked word is the last that it has seen):\n"
        ]
        lines += [f"- {marked(tokens, at)}".replace("\n", " ⏎ ") for tokens, _, at in one.examples]
        lines += [f"\n{what}: {told[what]}" for what in ("is fed by", "raises", "lowers") if what in told]
        lines += ["\nAt which of the two does it fire?\n"]
        for n, ((a, b), _) in enumerate(pairs, 1):
            lines += [f"{n}. a: {around(confirm, a)}", f"   b: {around(confirm, b)}"]
        key[number] = {
            "part": one.part,
            "drawn": kind,
            "name": one.name or one.rule,
            "places": [one for _, one in pairs],
        }
    write_text(folder / "cards.md", "\n".join(lines) + "\n")
    write_json(folder / "key.json", {"dictionary": dictionary.hash, "cards": key})


def read(folder, name):
    """One of the experiment's files."""
    return json.loads((folder / name).read_text(encoding="utf-8"))


def lines_of(folder):
    """For everything that a reader wrote: the reader, the card, five names of its kind, and where the true one stands."""
    key = read(folder, "key.json")["cards"]
    for path in sorted(folder.glob("reader-*.json")):
        for card, said in read(folder, path.name).items():
            if said["read"]:
                others = [
                    o["name"]
                    for o in key.values()
                    if o["drawn"] == key[card]["drawn"] and o["name"] != key[card]["name"]
                ]
                draw = random.Random(int(card))  # for all readers the same five
                five = draw.sample([key[card]["name"], *draw.sample(sorted(set(others)), 4)], 5)
                yield path.stem, card, said["read"], five, five.index(key[card]["name"]) + 1


def match(folder):
    """The sheet on which somebody else says which name says the same."""
    rows = enumerate(lines_of(folder), 1)
    text = [
        f"{n}. “{told}”\n" + "".join(f"   ({k}) {name}\n" for k, name in enumerate(five, 1))
        for n, (_, _, told, five, _) in rows
    ]
    write_text(folder / "match.md", "\n".join(text))


def score(folder):
    """What came of it, card by card, for notebook 06."""
    key, matched = read(folder, "key.json"), read(folder, "match.json")
    right = {(who, card): matched[str(n)] == true for n, (who, card, _, _, true) in enumerate(lines_of(folder), 1)}
    for number, card in key["cards"].items():
        truth, card["readers"] = card.pop("places"), []
        for path in sorted(folder.glob("reader-*.json")):
            said = read(folder, path.name)[number]
            hits = sum(a == b for a, b in zip(said["places"], truth, strict=True))
            row = {"said": said["said"], "read": said["read"], "right": hits, "of": len(truth)}
            card["readers"].append(row | {"named": right.get((path.stem, number), False)})
    write_json(ROOT / "notebooks" / "06_readings.json", key | {"cards": list(key["cards"].values())})


if __name__ == "__main__":
    {"make": make, "match": match, "score": score}[sys.argv[1]](Path(sys.argv[2]))
