"""Texts in which two words never stand together, for notebook 04: `python tests/withhold_pairs.py --help`.

Pairs of neighbouring words are chosen by count. One copy of the text loses every sentence in which a pair stands
(`withheld.jsonl`), another as many other sentences with the pair's second word (`control.jsonl`); stories set aside
lose nothing and are for judging (`judge.jsonl`). Models trained on the two differ by the pairs alone.
Source: sentences removed from the corpus and models trained anew, as Misra & Mahowald 2024 (arXiv 2403.19827).
"""

import argparse
import collections
import itertools
import random
import re
from collections.abc import Iterator
from pathlib import Path

from helpers.core.files import run_main, write_json, write_json_lines
from helpers.core.stories import FORMS, load_stories, stream_texts

SENTENCE = re.compile(r'[^.!?\n]*(?:[.!?]+["”]*|\n|$)\s*')
WORD = re.compile(r"[a-z]+(?:'[a-z]+)*")
# the words before, and the class of the word that they wait for
FRAMES = {
    "how much": ("very so too", "ADJ"),
    "felt": ("felt was feel looked", "ADJ"),
    "how big": ("big little small tiny", "NOUN"),
    "of what kind": ("red blue new old pretty nice special yummy", "NOUN"),
    "whose": ("his her my your their", "NOUN"),
    "a doing": ("he she they to", "VERB"),
}
EACH, ASIDE = 8, 3000
OFTEN, ELSEWHERE = range(40, 901), 4  # occurrences of a pair; its second word after others, as a multiple


def neighbours(sentence: str) -> Iterator[tuple[str, str]]:
    """Neighbouring words, in small letters, whatever stands between them."""
    return itertools.pairwise(WORD.findall(sentence.lower()))


def classes_of(column: str) -> dict[str, str]:
    """What the project's tagged stories mostly say of each word: its class (`universal`) or dictionary form (`lemma`)."""
    votes: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for story in load_stories():
        for word in story.words:
            votes[story.text[word.start : word.end].lower()][getattr(word, column)] += 1
    return {word: vote.most_common(1)[0][0] for word, vote in votes.items()}


def choose(texts: list[str], classes: dict[str, str]) -> list[dict]:
    """Up to `EACH` pairs of each kind of frame, drawn from all that are frequent enough, each second word once."""
    pairs, words = collections.Counter(), collections.Counter()
    for text in texts:
        pairs.update(neighbours(text))
        words.update(WORD.findall(text.lower()))
    chosen, used = [], set()
    for kind, (before, wanted) in FRAMES.items():
        fits = lambda a, b: a in before.split() and classes.get(b) == wanted  # noqa: E731, B023
        found = sorted(
            pair
            for pair, n in pairs.items()
            if n in OFTEN and fits(*pair) and words[pair[1]] > n * (ELSEWHERE + 1)
        )
        random.Random(kind).shuffle(found)
        mine: list[dict] = []
        for a, b in found:
            same = sum(one["before"] == a for one in mine)
            if len(mine) < EACH and same < 3 and not any(b.startswith(u) or u.startswith(b) for u in used):
                used.add(b)
                mine.append(
                    {
                        "kind": kind,
                        "before": a,
                        "word": b,
                        "pairs": pairs[a, b],
                        "elsewhere": words[b] - pairs[a, b],
                    }
                )
        chosen += mine
    return chosen


def cut(texts: list[str], pairs: list[dict]) -> tuple[list[str], list[str], dict[str, int]]:
    """The text without the pairs' sentences, the control text, and how many sentences each lost.

    A word that goes on from the second one (toys, from toy) counts as it: they may share their tokens.
    """
    wanted = {pair["word"]: pair["before"] for pair in pairs}
    begins = re.compile("|".join(sorted(wanted, key=len, reverse=True)))
    sentences = [SENTENCE.findall(text) for text in texts]
    out, spare = [set(), set()], collections.defaultdict(list)
    need: collections.Counter = collections.Counter()
    for at in ((i, j) for i, story in enumerate(sentences) for j in range(len(story))):
        sentence = sentences[at[0]][at[1]]
        stems = [(a, m[0]) for a, b in neighbours(sentence) if (m := begins.match(b))]
        hits = {stem for a, stem in stems if wanted[stem] == a}
        if hits:
            out[0].add(at)
            need.update([min(hits)])
        for stem in {stem for _, stem in stems} if not hits else ():
            spare[stem].append(at)
    for stem in sorted(need):
        left = [at for at in spare[stem] if at not in out[1]]
        out[1].update(random.Random(stem).sample(left, min(need[stem], len(left))))
    kept = [
        ["".join(s for j, s in enumerate(story) if (i, j) not in gone) for i, story in enumerate(sentences)]
        for gone in out
    ]
    return *kept, {"withheld": len(out[0]), "control": len(out[1])}


def main() -> None:
    """Command line: choose the pairs and write the two texts and the stories set aside."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help=f"training text: {FORMS}")
    parser.add_argument("--out", required=True, type=Path, help="folder for pairs.json and the three texts")
    options = parser.parse_args()
    texts = list(stream_texts(options.data))
    aside, texts = texts[-ASIDE:], texts[:-ASIDE]
    pairs = choose(texts, classes_of("universal"))
    withheld, control, lost = cut(texts, pairs)
    for name, kept in {"withheld": withheld, "control": control, "judge": aside}.items():
        write_json_lines(options.out / f"{name}.jsonl", ({"text": text.strip()} for text in kept if text.strip()))
    write_json(
        options.out / "pairs.json", {"pairs": pairs, "sentences": lost, "stories": len(texts), "aside": ASIDE}
    )


if __name__ == "__main__":
    run_main(main)
