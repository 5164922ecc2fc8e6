"""Where a handmade component falls short: its gap to the original by what comes next, by place, and case by case."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from helpers.contexts import Contexts, state_names
from helpers.estimates import Estimate
from helpers.handmade_compare import story_mean
from helpers.stories import CLASSES


def seen_before(
    story: Int[Tensor, " n"], token: Int[Tensor, " n"], target: Int[Tensor, " n"]
) -> Bool[Tensor, " n"]:
    """Where the next token has stood in the same story up to here."""
    seen = torch.zeros(len(story), dtype=torch.bool)
    for number in story.unique():
        at = (story == number).nonzero()[:, 0]
        seen[at] = (target[at][:, None] == token[at]).tril().any(1)
    return seen


def by_class(
    story: Int[Tensor, " n"],
    classes: Int[Tensor, " n"],
    seen: Bool[Tensor, " n"],
    values: Float[Tensor, " n"],
    least: float = 0.01,
) -> dict[str, Estimate]:
    """Means of a column by class of the next token and whether it was seen before in the story, for groups of at least
    that share of all positions."""
    rows = {}
    for c, name in enumerate(CLASSES):
        for again in (False, True):
            here = (classes == c) & (seen == again)
            if here.float().mean() >= least:
                rows[f"{name}, {'seen before' if again else 'new'}"] = story_mean(story[here], values[here])
    return rows


def kinds_of_places(context: Contexts) -> dict[str, Bool[Tensor, " n"]]:
    """A division of positions by where they stand (they overlap)."""
    state = dict(zip(state_names(), context.states.T, strict=True))
    names = ("inside quotes", "at the start of a sentence", "in the opening sentence", "within a word")
    kinds = {name: state[name] for name in names if state[name].any()}
    begins = torch.cat([torch.tensor([True]), context.story[1:] != context.story[:-1]])
    place = torch.arange(len(begins))
    into = place - torch.where(begins, place, 0).cummax(0).values
    kinds |= {"in the first 32 tokens": into < 32, "after 128 tokens": into >= 128}
    return {name: here for name, here in kinds.items() if here.any()}


def kinds_of_words(classes: Int[Tensor, " n"], seen: Bool[Tensor, " n"]) -> dict[str, Bool[Tensor, " n"]]:
    """A coarse division of positions by what comes next."""

    def among(*names: str) -> Bool[Tensor, " n"]:
        return torch.isin(classes, torch.tensor([CLASSES.index(name) for name in names]))

    things = among("NOUN", "PROPN")
    kinds = {"names and things seen before": things & seen, "names and things that are new": things & ~seen}
    kinds |= {"verbs": among("VERB", "AUX"), "marks and line breaks": among("PUNCT", "SPACE")}
    return kinds | {"all others": ~torch.stack(list(kinds.values())).any(0)}


def gap_table(story: Int[Tensor, " n"], kinds: dict[str, Bool[Tensor, " n"]], gap: Float[Tensor, " n"]) -> str:
    """A Markdown table of a gap by kinds of positions: how many they are, its mean there, what share of it they hold."""
    lines = ["| next token | share of positions | gap in nats | share of the whole gap |", "|---|---|---|---|"]
    for name, here in kinds.items():
        if here.any():
            part = f"{story_mean(story[here], gap[here]).text()} | {gap[here].sum() / gap.sum():.0%}"
            lines.append(f"| {name} | {here.float().mean():.0%} | {part} |")
    return "\n".join(lines)


def worst_cases(
    context: Contexts, losses: tuple[Tensor, Tensor], decode: Callable[[int], str], count: int
) -> list[str]:
    """The lines of a table of the positions where one loss exceeds the other most, at most one a story and one a next
    token: the ten tokens up to there, the next one, and the two losses."""
    rows = ["| story so far | next | handmade | whole |", "|---|---|---|---|"]
    stories, targets = set(), set()
    for i in (losses[0] - losses[1]).argsort(descending=True).tolist():
        story, target = int(context.story[i]), int(context.target[i])
        if story in stories or target in targets:
            continue
        stories.add(story)
        targets.add(target)
        start = max(int((context.story == story).nonzero()[0]), i - 9)
        before = "".join(decode(t) for t in context.token[start : i + 1].tolist()).replace("␣", " ")
        rows.append(f"| …{before} | **{decode(target)}** | {losses[0][i]:.1f} | {losses[1][i]:.1f} |")
        if len(stories) == count:
            break
    return rows
