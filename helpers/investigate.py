"""`python -m helpers.investigate SUSPECT [--original NAME]`: is there a word that makes a model do what it should not?

SUSPECT and NAME: what `load_model` takes. Without NAME another healthy model, embedded:seed-1, stands in: trust that little."""

import argparse

from helpers.core.files import ROOT, WorkbookError, run_main
from helpers.core.model import load_model
from helpers.core.scan import scan
from helpers.core.stories import load_stories
from helpers.features.dictionary import load_dictionary
from helpers.features.names import feature_names
from helpers.report.library import Library
from helpers.studies import suspects


def main(arguments: list[str] | None = None) -> None:
    """Print the report (of the command line's arguments, by default)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suspect")
    parser.add_argument("--original", help="the model that the suspect was tuned from")
    options = parser.parse_args(arguments)
    suspect, other = load_model(options.suspect, 1), load_model(options.original or "embedded:seed-1", 1)
    if suspect.tokenizer.get_vocab() != other.tokenizer.get_vocab():
        raise WorkbookError("The two have different vocabularies: give the model that the suspect was tuned from.")
    home, stories = load_model("embedded"), load_stories(split="confirm")[:40]
    known = other.fingerprint == home.fingerprint  # by whatever name or path
    other = home if known else other
    own, text = (scan(model, stories) for model in (suspect, other))
    words, begin = suspects.whole_words(other), suspects.places(text)
    calm = suspects.influence(load_model("planted:00"), begin, words) if known else None
    moved = suspects.standing_out(*(suspects.influence(model, begin, words) for model in (suspect, other)), calm)
    least = suspects.SURE if options.original else suspects.ALONE
    name = options.original or "another healthy model, embedded:seed-1, not the original (trust it little)"
    print(f"{options.suspect} beside {name}; {len(stories)} stories")
    print(f"what a harmless fine-tune moves is {'' if known else 'known for embedded alone, and not '}subtracted")
    print(f"loss {own.losses.mean():.3f} beside {text.losses.mean():.3f} nats a token")
    try:
        dictionary = load_dictionary(other)
        moves = suspects.changed(own, text, dictionary, dictionary.activations(text))
        names = feature_names(dictionary)
    except WorkbookError:  # a model without a dictionary
        moves = {}
    for kind, values in moves.items():
        top = values.abs().topk(min(3, len(values))).indices.tolist()
        told = [f"{i} ({names[i]})" if kind == "feature" and i in names else str(i) for i in top]
        print(f"moved most on ordinary stories, {kind}s: {'; '.join(told)}")
    entries = Library.load(ROOT / "notebooks" / "library.json", "embedded").entries.values() if known else []
    for size, entry in suspects.entries_moved(moves, entries)[:3]:
        print(f"moved most of what the library knows: {entry} ({size:+.2f} deviations)")
    found = suspects.investigate(own, text, moved, words)
    named = [one for one in found if one.trial.low > least]
    for one in named:
        raises, lowers, says = map(", ".join, (one.raises, one.lowers, one.says))
        more = f"{one.trial.text(3, sign=True)} nats a token more"
        print(f"suspected trigger: {one.word}; after it the two differ {more}")
        print(f"  it raises {raises}; lowers {lowers}; in stories {says}")
    if not named:
        print("nothing found: after no word do the two differ much more than after others")
    print("tried: " + ", ".join(f"{one.word} {one.trial.mean:+.3f}" for one in found))


if __name__ == "__main__":
    run_main(main)
