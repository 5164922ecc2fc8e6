"""Which heads bring something from some earlier words, and what a head looks at."""

from collections.abc import Callable

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from helpers.core.contexts import state_names, vocabulary_of_families
from helpers.core.files import WorkbookError
from helpers.core.parts import Parts, Where
from helpers.core.paths import bin_names
from helpers.core.scan import Scan, decoder
from helpers.core.stories import CLASSES
from helpers.core.words import Words, family
from helpers.heads.changes import Sources, hear, hidden, loss, placed, stream

LEAST = 0.1  # nats a next word that hiding the words from one head alone has to cost
START = "start of the story"  # the position of `<|endoftext|>`
DISTANCES = (0, 1, 2, 3, 5, 9, 17, 33, 65, 129, 257)  # tokens back: the bins' first ones


def find_heads(scan: Scan, looks_at: Sources, where: Where = None, least: float = LEAST) -> Parts:
    """Heads through which the model uses some earlier words.

    A head can look at words and do nothing with them, so looking is not asked: what a head fetches from these words is
    hidden (replaced by as much of its average message), in one head at a time, and the next words must cost more.

    Args:
        scan: explore text.
        looks_at: words, wherever they stand before (or here), or a function that marks a batch's positions ([n], or
            [story query key] where each position has words of its own, as `sources`).
        where: the positions that should need them, as a mask or a method such as `people.comes_next`.
        least: the cost that makes a head a member, nats a token there.

    The dearest come first; what hiding costs is their `score`.

        find_heads(explore, looks_at=tagged("PROPN"), where=tagged("PROPN").comes_next)
    """
    means = scan.z.mean(0)

    def costs(batch: Scan) -> dict[str, Float[Tensor, " n"]]:
        change = hidden(batch, looks_at, means)
        return {str(h): loss(batch, hear(batch, change[:, h])) - batch.losses for h in range(change.shape[1])}

    cost = torch.tensor([column.mean() for column in stream(scan, costs, where).values()])
    members = (cost >= least).nonzero()[:, 0]
    members = members[cost[members].argsort(descending=True)]
    return Parts(f"brings {getattr(looks_at, 'name', 'these words')}", "head", members, cost[members], means)


def look(
    scan: Scan,
    head: int | list[int],
    where: Where | str = None,
    by: str | dict[str, Words] = "class",
    most: int = 12,
) -> pd.DataFrame:
    """What a head looks at: its attention, added up by what is looked at.

    Args:
        scan: stories.
        head: its number, or several.
        where: the positions that it looks from, as a mask, a method, or a state's name ("inside quotes").
        by: "class" (part of speech), "family", "token", "distance" (tokens back), or families of one's own by name.
        most: rows; the groups that get most of the attention come first (distances in their order).

    Columns: the share of each head's attention, and `even`, what a head would give that looks at all words alike.

        look(explore, 3, where="inside quotes", by={"weather": words("rain sun snow")})

    Raises:
        WorkbookError: no such head, state or grouping.
    """
    heads = [head] if isinstance(head, int) else list(head)
    if wrong := [h for h in heads if not 0 <= h < scan.model.cfg.n_heads]:
        raise WorkbookError(f"No head {wrong[0]}: the model's heads are 0 to {scan.model.cfg.n_heads - 1}.")
    group, names = _groups(scan.whole or scan, by)
    total = torch.zeros(len(heads) + 1, len(names))
    for batch, numbers in placed(scan, _state(where) if isinstance(where, str) else where):
        pattern, full = batch.streams.pattern, batch.whole
        before = torch.arange(pattern.shape[-1]) <= batch.pos[:, None]
        weights = [pattern[batch.row, h, batch.pos][before] for h in heads]
        weights.append((before / (batch.pos[:, None] + 1))[before])
        if by == "distance":
            back = (batch.pos[:, None] - torch.arange(before.shape[1]))[before]
            number = torch.bucketize(back, torch.tensor(DISTANCES), right=True) - 1
        else:
            keys = torch.zeros(len(pattern), pattern.shape[-1], dtype=torch.long)
            keys[full.row, full.pos] = group[numbers]
            number = keys[batch.row][before]
        total += torch.stack([torch.bincount(number, weight, len(names)) for weight in weights])
    columns = [*(f"head {h}" for h in heads), "even"]
    table = pd.DataFrame((total / total.sum(1, keepdim=True)).T.tolist(), names, columns)
    table = table[table["even"] > 0]
    return table if by == "distance" else table.sort_values(columns[0], ascending=False)[:most]


def _state(name: str) -> Callable[[Scan], Bool[Tensor, " n"]]:
    """A method that marks the positions of a state."""
    if name not in state_names():
        raise WorkbookError(f"No state named {name!r}: choose one of {', '.join(state_names()[:6])}, …")
    return lambda scan: scan.context.states[:, state_names().index(name)]


def _groups(scan: Scan, by: str | dict[str, Words]) -> tuple[Int[Tensor, " n"], list[str]]:
    """The group of the token at every position of a scan, and the groups' names (by distance: the names alone)."""
    if by == "distance":
        return scan.pos, bin_names(list(DISTANCES), f"{DISTANCES[-1]} and more")
    if by == "token":
        decode = decoder(scan.model.tokenizer)
        return scan.token, [decode(t) for t in range(scan.model.cfg.d_vocab)]
    if by == "class":
        names, group = [*CLASSES, "no class"], torch.where(scan.context.tag >= 0, scan.context.tag, len(CLASSES))
    else:
        if isinstance(by, str) and by != "family":
            raise WorkbookError(f"No grouping named {by!r}: class, family, token, distance, or a dict of words.")
        kinds = {name: family(name) for name in vocabulary_of_families()["families"]} if by == "family" else by
        names, group = [*kinds, "other words"], torch.full((len(scan),), len(kinds))
        for number, kind in reversed(list(enumerate(kinds.values()))):
            group[kind.here(scan)] = number
    return torch.where(scan.pos == 0, len(names), group), [*names, START]
