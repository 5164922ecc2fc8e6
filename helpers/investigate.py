"""`python -m helpers.investigate SUSPECT [--original NAME]`: is there a word that makes a model do what it should not?

SUSPECT and NAME: what `load_model` takes (a folder, a checkpoint, planted:NUMBER). Without the original, another healthy model
stands in. Run as a command, imported by nothing.
"""

import argparse

from helpers.core.files import WorkbookError, run_main
from helpers.core.model import load_model
from helpers.core.scan import scan
from helpers.core.stories import load_stories
from helpers.features.names import feature_names
from helpers.studies import suspects


def main() -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suspect")
    parser.add_argument("--original", help="the model that the suspect was tuned from")
    options = parser.parse_args()
    suspect, other = load_model(options.suspect), load_model(options.original or "embedded:seed-1")
    suspects.comparable(suspect, other)
    stories = load_stories(split="confirm")[:40]
    own, text = (scan(model, stories, hold=("resid_mid", "mlp_post", "z")) for model in (suspect, other))
    words, begin = suspects.whole_words(other), suspects.places(text)
    calm = suspects.influence(load_model("planted:00"), begin, words) if options.original == "embedded" else None
    sides = (suspects.influence(model, begin, words) for model in (suspect, other))
    moved, least = suspects.standing_out(*sides, calm), suspects.SURE if options.original else suspects.ALONE
    beside = (
        f"its original {options.original}" if options.original else "another healthy model (no original was given)"
    )
    print(f"{options.suspect} beside {beside}, on {len(stories)} stories")
    print(f"loss {own.losses.mean():.3f} beside {text.losses.mean():.3f} nats a token")
    try:
        moves, names = suspects.changed(own, text), feature_names(suspects.load_dictionary(other))
    except WorkbookError:  # a model without a dictionary
        moves = {}
    for kind, values in moves.items():
        top = values.topk(min(3, len(values))).indices.tolist()
        told = [f"{i} ({names[i]})" if kind == "feature" and i in names else str(i) for i in top]
        print(f"moved most on ordinary stories, {kind}s: {'; '.join(told)}")
    found = suspects.investigate(own, text, moved, words)
    named = [one for one in found if one.trial.low > least]
    for one in named:
        print(
            f"suspected trigger: {one.word}; the models differ {one.trial.text(3, sign=True)} nats a token more after it"
        )
        print(
            f"  it raises {', '.join(one.raises)}; lowers {', '.join(one.lowers)}; in stories {', '.join(one.says)}"
        )
    if not named:
        print("nothing found: after no word do the two differ much more than after others")
    print("tried: " + ", ".join(f"{one.word} {one.trial.mean:+.3f}" for one in found))


if __name__ == "__main__":
    run_main(main)
