"""Cards of features and neurons for readers who are not told what they are: the numbers of notebook 06's blind reading.

    python tests/blind_cards.py make FOLDER

writes FOLDER/cards-first.md (features and neurons drawn at random, and features that have been read; cards without name, rule,
kind, number and costs, each with six pairs of unseen places), FOLDER/cards-second.md (more features, and features of a model
with random weights) and FOLDER/key.json. Each reader of a set writes FOLDER/reader-SET-N.json, {card: {"said": "yes" |
"partly" | "no", "read": what the part is for, "places": ["a" | "b", …]}}. Then

    python tests/blind_cards.py match FOLDER

writes FOLDER/match-SET.md: beside what each reader wrote, five names of parts of that kind; who scores it writes
FOLDER/match-SET.json, {line: number of the name that says the same}. And

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

PAIRS, SEED, TWIN = 6, 20, "features of a random model"
SETS = {"first": {"named features": 8, "features": 20, "neurons": 20}, "second": {"features": 8, TWIN: 12}}
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


def drawn(scans, kind, numbers, draw):
    """The cards of some parts, each with its kind and its pairs of places."""
    explore, confirm = scans
    basis = None if kind == "neurons" else load_dictionary(explore.model)
    parts = Parts(kind, "neuron" if kind == "neurons" else "feature", torch.tensor(numbers), basis=basis)
    own, unseen = activity(explore, parts), activity(confirm, parts)
    least = torch.zeros(len(parts)) if basis else own.mean(0) + 2 * own.std(0)
    pairs = [places(confirm, unseen[:, k], least[k], draw) for k in range(len(parts))]
    return [(kind, one, text) for one, text in zip(cards(explore, parts, confirm), pairs, strict=True)]


def scans(name):
    """Both halves of the stories, as a model takes them in."""
    model = load_model(name)
    return [scan(model, load_stories(split=half)) for half in ("explore", "confirm")]


def make(folder):
    """Draw the parts, shuffle them, write the cards and the key."""
    own, draw, key, left = scans("embedded"), random.Random(SEED), {}, {}
    dictionary = load_dictionary(own[0].model)
    sizes = {"neurons": own[0].model.cfg.d_mlp, "features": len(dictionary)}
    for name, kinds in SETS.items():
        of = {kind: scans("random:embedded") if kind == TWIN else own for kind in kinds}
        sizes |= {kind: len(load_dictionary(pair[0].model)) for kind, pair in of.items() if kind == TWIN}
        numbers, made = {}, []
        for kind, count in kinds.items():
            pool = left.get(kind) or (
                sorted(feature_names(dictionary)) if kind == "named features" else range(sizes[kind])
            )
            taken = numbers.get("named features", []) if kind == "features" else []
            numbers[kind] = draw.sample([i for i in pool if i not in taken], count)
            left[kind] = [i for i in pool if i not in {*numbers[kind], *taken}]
        for kind, some in numbers.items():
            made += drawn(of[kind], kind, some, draw)
        draw.shuffle(made)
        write_text(
            folder / f"cards-{name}.md",
            "\n".join(sheet(made, {kind: pair[1] for kind, pair in of.items()})) + "\n",
        )
        key[name] = {
            n: {
                "part": one.part,
                "drawn": kind,
                "name": one.name or one.rule,
                "places": [true for _, true in pairs],
            }
            for n, (kind, one, pairs) in enumerate(made, 1)
        }
    write_json(folder / "key.json", {"dictionary": dictionary.hash, "sets": key})


def sheet(made, texts):
    """The lines of a set of cards."""
    for number, (kind, one, pairs) in enumerate(made, 1):
        told, text = one.lines(), texts[kind]
        yield f"\n## Card {number}\n\nWhere it fires, from loud to quiet (the marked word is the last that it has seen):\n"
        yield from (f"- {marked(tokens, at)}".replace("\n", " ⏎ ") for tokens, _, at in one.examples)
        yield from (f"\n{what}: {told[what]}" for what in ("is fed by", "raises", "lowers") if what in told)
        yield "\nAt which of the two does it fire?\n"
        for n, ((a, b), _) in enumerate(pairs, 1):
            yield f"{n}. a: {around(text, a)}\n   b: {around(text, b)}"


def read(folder, name):
    """One of the experiment's files."""
    return json.loads((folder / name).read_text(encoding="utf-8"))


def lines_of(folder, name):
    """For everything that a reader wrote: the reader, the card, five names of its kind, and where the true one stands."""
    key = read(folder, "key.json")["sets"][name]
    for path in sorted(folder.glob(f"reader-{name}-*.json")):
        for card, said in read(folder, path.name).items():
            if said["read"]:
                kind, true = key[card]["drawn"], key[card]["name"]
                others = sorted({one["name"] for one in key.values() if one["drawn"] == kind} - {true})
                draw = random.Random(int(card))  # for all readers the same five
                five = draw.sample([true, *draw.sample(others, 4)], 5)
                yield path.stem, card, said["read"], five, five.index(true) + 1


def match(folder):
    """The sheets on which somebody else says which name says the same."""
    for name in SETS:
        rows = enumerate(lines_of(folder, name), 1)
        choices = lambda five: "".join(f"   ({k}) {one}\n" for k, one in enumerate(five, 1))  # noqa: E731
        text = (f"{n}. “{told}”\n{choices(five)}" for n, (_, _, told, five, _) in rows)
        write_text(folder / f"match-{name}.md", "\n".join(text))


def score(folder):
    """What came of it, card by card, for notebook 06."""
    key, scored = read(folder, "key.json"), []
    for name, made in key.pop("sets").items():
        chosen = read(folder, f"match-{name}.json")
        right = {
            (who, card): chosen[str(n)] == true
            for n, (who, card, _, _, true) in enumerate(lines_of(folder, name), 1)
        }
        for number, card in made.items():
            truth, card["readers"] = card.pop("places"), []
            for path in sorted(folder.glob(f"reader-{name}-*.json")):
                said = read(folder, path.name)[number]
                hits = sum(a == b for a, b in zip(said["places"], truth, strict=True))
                row = {"said": said["said"], "read": said["read"], "right": hits, "of": len(truth)}
                card["readers"].append(row | {"named": right.get((path.stem, number), False)})
            scored.append(card)
    write_json(ROOT / "notebooks" / "06_readings.json", key | {"cards": scored})


if __name__ == "__main__":
    {"make": make, "match": match, "score": score}[sys.argv[1]](Path(sys.argv[2]))
