"""What is told of one head: where it looks, what looking there raises and lowers, where it is missed most."""

import dataclasses

import pandas as pd

from helpers.core.parts import costs, heads
from helpers.core.paths import head_writes
from helpers.core.scan import Scan, decoder
from helpers.heads.changes import hear
from helpers.heads.copying import head_words, mlp_passage
from helpers.heads.find import looks
from helpers.heads.pieces import Piece, at_place, best_places, piece

OFTEN = 2e-4  # of all words: rarer ones are not named on a card


@dataclasses.dataclass(frozen=True)
class Card:
    """looks: shares of attention by class and by distance. words: a word that the head looks at far more than at others,
    and the words that this raises and lowers. pieces: where it is missed most. cost: of mean ablation, nats a token."""

    head: int
    looks: dict[str, pd.DataFrame]
    words: list[tuple[str, list[str], list[str]]]
    pieces: list[Piece]
    cost: float


def head_card(scan: Scan, head: int) -> Card:
    """The card of one head on a scan."""
    model, decode, onward = scan.model, decoder(scan.model.tokenizer), mlp_passage(scan)
    classes, distances, tokens = looks(scan, [head], None, ["class", "distance", "token"], model.cfg.d_vocab)
    numbers = {decode(t): t for t in range(model.cfg.d_vocab)}
    often = tokens[(tokens["even"] > OFTEN) & ~tokens.index.str[0].str.islower()]  # no ends of words
    words = []
    for word in (often[f"head {head}"] / often["even"]).nlargest(5).index:
        sides = head_words(model, head, numbers[word], onward)
        words.append((word.strip("␣"), *([decode(t).strip("␣") for t in side] for side in sides)))
    lost = costs(scan, heads([head], scan))
    chance = (-scan.losses).exp() * (1 - (-lost).exp())  # that the next word loses
    pieces = [missed(scan, head, i) for i in best_places(scan, chance)]
    return Card(head, {"class": classes[:8], "distance in tokens": distances}, words, pieces, lost.mean().item())


def missed(scan: Scan, head: int, i: int) -> Piece:
    """The piece that ends at a position of a scan, coloured by a head's attention, with the head mean-ablated."""
    batch = at_place(scan, i)
    change = head_writes(scan.model, scan.z.mean(0) - batch.z)[:, head]
    return piece(batch, batch.streams.pattern[0, head, int(batch.pos[0])], hear(batch, change))
