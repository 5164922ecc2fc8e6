"""The measurements of notebook 03 on text, in one streaming pass, and what is read off them."""

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.estimates import Estimate, StoryTable, bootstrap
from helpers.core.scan import Scan, walk
from helpers.core.stories import CLASSES, Story
from helpers.heads.comebacks import KINDS, batch_sources
from helpers.heads.edits import HeadMeans, edit_columns, losses_with_outputs, route_columns
from helpers.heads.patterns import even_attention, head_kind, overlap, pattern_columns, score_losses, score_parts
from helpers.heads.programs import Program, program_patterns

Heads = dict[int, Program]  # programs in the place of some heads


def program_columns(
    model: TransformerBridge, batch: Scan, programs: list[Program], sets: dict[str, Heads]
) -> dict[str, Float[Tensor, " n"]]:
    """What programs do in the heads' place, as columns.

    "program overlap, head 0": of the program's pattern with the true one. "program of head 0": loss with this head's pattern
    replaced. And the loss under each of `sets`, by name.
    """
    streams, columns = batch.streams, {}
    known = list(dict.fromkeys([*programs, *(program for heads in sets.values() for program in heads.values())]))
    patterns = dict(zip(known, program_patterns(known, batch).unbind(1), strict=True))
    for h, program in enumerate(programs):
        common = overlap(patterns[program], streams.pattern[:, h])
        columns[f"program overlap, head {h}"] = batch.flat(common)
    sets = {f"program of head {h}": {h: program} for h, program in enumerate(programs)} | sets
    for name, heads in sets.items():
        z = streams.z.clone()
        for h, program in heads.items():
            z[:, :, h] = patterns[program] @ streams.v[:, :, h]
        columns[name] = losses_with_outputs(model, batch, z)
    return columns


@torch.no_grad()
def measure_heads(
    model: TransformerBridge,
    stories: list[Story],
    mean_token: Float[Tensor, " d_model"],
    means: HeadMeans,
    programs: list[Program],
    sets: dict[str, Heads],
    every: int = 4,
) -> StoryTable:
    """Everything that is measured of the heads on text, in one pass: patterns and their parts, edits, routes, programs.

    Grouped by the next token's class and by its kind (KINDS). One in `every` positions is scored, since each takes a
    forward pass from the heads on for every edit.
    """
    table = StoryTable({"class": CLASSES, "kind": list(KINDS)})
    for whole in walk(model, tqdm(stories, desc="heads"), positions=4096):
        at = torch.arange(0, len(whole.target), every)
        batch = whole.at(at)
        parts = score_parts(model, batch.streams, mean_token)
        columns = pattern_columns(model, batch, parts) | score_losses(model, batch, parts)
        del parts
        columns |= edit_columns(model, batch, means) | route_columns(model, batch, means)
        columns |= program_columns(model, batch, programs, sets)
        groups = {"class": whole.next_tags("universal", CLASSES)[at], "kind": batch_sources(batch)[0]}
        table.add(batch.story, columns, groups)
    return table


def recovered_share(
    table: StoryTable, column: str, without: str = "mean ablation of all heads", whole: str = "loss"
) -> Estimate:
    """Share of what an ablation loses that a replacement gives back, with its interval over stories; nan if nothing is lost."""
    here = table.counts["all"][:, 0] > 0
    lost, back = (table.sums[without, "all"] - table.sums[name, "all"] for name in (whole, column))
    lost, back = lost[here, 0], back[here, 0]
    if (lost.sum() / table.counts["all"].sum()).abs() < 0.005:
        return Estimate(float("nan"), float("nan"), float("nan"))
    return bootstrap(back, lost)


def by_head(table: StoryTable, name: str, heads: int) -> list[float]:
    """A measurement of every head: the means of the columns "name, head 0" and so on."""
    return [table.means(f"{name}, head {h}").item() for h in range(heads)]


def head_costs(table: StoryTable, edit: str, heads: int, grouping: str = "all") -> Float[Tensor, "head group"]:
    """What an edit of each head costs (nats), by group of the next token."""
    whole = table.means("loss", grouping)
    return torch.stack([table.means(f"{edit} of head {h}", grouping) - whole for h in range(heads)]).float()


def kinds_of_heads(table: StoryTable, heads: int) -> list[str]:
    """Each head's kind, by the criteria of `head_patterns.head_kind`."""
    near, first = (by_head(table, name, heads) for name in ("near", "first"))
    parts = ("token–token", "position–position")
    leads = [table.estimate(*(f"{part} alone, head {h}" for part in parts)) for h in range(heads)]
    return [head_kind(*row) for row in zip(near, first, leads, strict=True)]


def above_chance(overlaps: list[float], even: list[float]) -> list[float]:
    """Overlaps on a scale on which even attention has 0 and the pattern itself 1."""
    return [(value - chance) / (1 - chance) for value, chance in zip(overlaps, even, strict=True)]


def comeback_cost(table: StoryTable, column: str, kind: str) -> Estimate:
    """What taking attention away ("blocked", "others blocked" …) costs the next tokens of a kind, with its interval."""
    return table.estimate(column, "loss", "kind", list(KINDS).index(kind))


def single_costs(table: StoryTable, heads: int) -> Float[Tensor, "head kind"]:
    """What hiding the sources in one head alone costs the next tokens of each kind (nats), from a `comeback_table`."""
    whole = table.means("loss", "kind")
    return (
        torch.stack([table.means(f"blocked in head {h}", "kind") - whole for h in range(heads)])
        .float()
        .nan_to_num()
    )


def program_fit(model: TransformerBridge, stories: list[Story], programs: list[Program]) -> list[float]:
    """Mean overlap of each head's program with its pattern over some stories, above chance."""
    table = StoryTable()
    for batch in walk(model, stories):
        true = batch.streams.pattern
        common, even = overlap(program_patterns(programs, batch), true), overlap(even_attention(true), true)
        columns = {f"fit, head {h}": batch.flat(common[:, h]) for h in range(len(programs))}
        table.add(batch.story, columns | {f"even, head {h}": batch.flat(even[:, h]) for h in range(len(programs))})
    return above_chance(*(by_head(table, name, len(programs)) for name in ("fit", "even")))


def lost_share(table: StoryTable, whole: str, left: str) -> Estimate:
    """By what share a mean falls from one column to another, with its interval over stories; nan if no position was met."""
    here = table.counts["all"][:, 0] > 0
    if not here.any():
        return Estimate(float("nan"), float("nan"), float("nan"))
    before, after = (table.sums[name, "all"][here, 0] for name in (whole, left))
    return bootstrap(before - after, before)


def cost_ratio(table: StoryTable, column: str, over: str, kind: str) -> Estimate:
    """What one edit costs a kind's next tokens over what another costs them, with its interval over stories."""
    number, here = list(KINDS).index(kind), table.counts["all"][:, 0] > 0
    part, whole = (
        (table.sums[name, "kind"] - table.sums["loss", "kind"])[here, number] for name in (column, over)
    )
    return bootstrap(part, whole)


def rank_correlation(x: list[float], y: list[float], draws: int = 5000, seed: int = 0) -> tuple[float, float]:
    """Spearman's rank correlation (ties in order), and the share of random orders that have one as large."""
    generator = torch.Generator().manual_seed(seed)
    ranks = [torch.tensor(values).argsort().argsort().double() for values in (x, y)]
    ranks = [(r - r.mean()) / (r - r.mean()).norm() for r in ranks]
    chance = torch.stack([ranks[0][torch.randperm(len(x), generator=generator)] @ ranks[1] for _ in range(draws)])
    value = (ranks[0] @ ranks[1]).item()
    return value, (chance >= value - 1e-9).double().mean().item()
