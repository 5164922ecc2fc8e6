"""The measurements of notebook 03 on text, in one streaming pass, and what is read off them."""

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from helpers.comebacks import KINDS, batch_sources
from helpers.corpus import walk
from helpers.estimates import Estimate, StoryTable, bootstrap
from helpers.head_edits import edit_columns, losses_with_outputs, only_head, pattern_outputs
from helpers.head_patterns import flat_heads, head_kind, overlap, pattern_columns, score_losses, score_parts
from helpers.head_programs import Look, Program, program_patterns
from helpers.stories import CLASSES, Story

UNIFORM = Program((Look("any word"),), (1.0,))


def program_columns(model: TransformerBridge, batch, programs: list[Program]) -> dict[str, Float[Tensor, " n"]]:
    """What the programs do in the heads' place, as columns.

    "program overlap, head 0": with the true pattern. "program of head 0": loss with its pattern replaced. "programs of all heads",
    "programs shuffled among heads", "uniform attention": loss with all replaced.
    """
    streams = batch.streams
    patterns = program_patterns(programs, batch)
    z = pattern_outputs(patterns, streams.v)
    common = flat_heads(batch, overlap(patterns, streams.pattern))
    columns = {f"program overlap, head {h}": common[:, h] for h in range(len(programs))}
    columns |= {
        f"program of head {h}": losses_with_outputs(model, batch, only_head(streams.z, z, h))
        for h in range(len(programs))
    }
    wrong = pattern_outputs(patterns.roll(len(programs) // 2, 1), streams.v)
    even = pattern_outputs(program_patterns([UNIFORM], batch).expand_as(streams.pattern), streams.v)
    others = {"programs of all heads": z, "programs shuffled among heads": wrong, "uniform attention": even}
    return columns | {name: losses_with_outputs(model, batch, new) for name, new in others.items()}


@torch.no_grad()
def measure_heads(
    model: TransformerBridge,
    stories: list[Story],
    mean_token: Float[Tensor, " d_model"],
    mean_z: Float[Tensor, "head d_head"],
    average: Float[Tensor, "head query key"],
    programs: list[Program],
    every: int = 3,
) -> StoryTable:
    """Everything that is measured of the heads on text, in one pass: patterns and their parts, edits, programs.

    Grouped by the next token's class and by its kind (KINDS). One in `every` positions is scored, since each takes a
    forward pass from the heads on for every edit.
    """
    table = StoryTable({"class": CLASSES, "kind": list(KINDS)})
    for whole in walk(model, tqdm(stories, desc="heads"), positions=4096):
        at = torch.arange(0, len(whole.target), every)
        batch = whole.chosen(at)
        parts = score_parts(model, batch.streams, mean_token)
        columns = pattern_columns(model, batch, parts) | score_losses(model, batch, parts)
        del parts
        columns |= edit_columns(model, batch, mean_z, average) | program_columns(model, batch, programs)
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
    if (lost.sum() / table.counts["all"].sum()).abs() < 0.02:
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
    names = ("near", "first", "token–token alone", "position–position alone")
    rows = zip(*(by_head(table, name, heads) for name in names), strict=True)
    return [head_kind(*row) for row in rows]


def comeback_cost(table: StoryTable, column: str, kind: str) -> Estimate:
    """What taking attention away ("blocked", "others blocked" …) costs the next tokens of a kind, with its interval."""
    return table.estimate(column, "loss", "kind", list(KINDS).index(kind))


def rank_correlation(x: list[float], y: list[float]) -> float:
    """Spearman's rank correlation; ties in order."""
    ranks = [torch.tensor(values).argsort().argsort().double() for values in (x, y)]
    return torch.corrcoef(torch.stack(ranks))[0, 1].item()
