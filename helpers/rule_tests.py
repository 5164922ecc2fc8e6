"""The tests of the kinds of rule on confirm text: does a kind fire as it should there, and is it needed there?"""

import dataclasses

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.contexts import Contexts
from helpers.estimates import Estimate, StoryTable, difference
from helpers.neuron_families import matched_sets, set_effects
from helpers.rule_effects import Effects
from helpers.rule_kinds import Sides, lists

UNLIKE = 0.2  # by this share the support of matched sets may differ from that of the kind's neurons


@dataclasses.dataclass(frozen=True)
class Removal:
    """What removing a kind's neurons costs. own: where it should fire and one of its tokens comes next. elsewhere:
    where another token comes next. beyond: own less elsewhere, against the mean of the matched sets (interval over
    stories). beaten: share of matched sets whose own less elsewhere is smaller; by_chance: the same for one of the
    matched sets among the others. support: how far members, and matched sets, support the kind's tokens."""

    own: float
    elsewhere: float
    beyond: Estimate
    beaten: float
    by_chance: float
    support: tuple[float, float]
    positions: int

    @property
    def needed(self) -> bool:
        """Whether the kind costs more where it applies than elsewhere, and this difference is larger than in 95 % of the
        matched sets, and than in their mean."""
        return self.own > self.elsewhere and self.beaten >= 0.95 and self.beyond.low > 0

    @property
    def matched(self) -> bool:
        """Whether the members support the kind's tokens at most a fifth more or less than the matched sets do."""
        return abs(self.support[0] - self.support[1]) <= UNLIKE * abs(self.support[1])

    @property
    def passes(self) -> bool:
        """Whether the kind is needed just where it applies, against sets that are fairly matched."""
        return self.needed and self.matched and self.positions > 0

    @property
    def verdict(self) -> str:
        """The verdict in words; VERDICTS says what each means."""
        if self.positions and self.own <= self.elsewhere:
            return "more elsewhere"
        return "passes" if self.passes else "not matched" if self.needed else "fails"


VERDICTS = {  # what each verdict says of "the neurons are needed just where the kind applies", and the library's status
    "passes": ("holds, against fairly matched sets.", "holds"),
    "not matched": ("is not shown: they support its tokens more than their matched sets do.", "not shown"),
    "more elsewhere": ("does not hold: they cost no less where other words come next.", "refuted"),
    "fails": ("is not shown: some matched sets are needed there as much.", "not shown"),
}
NOTHING = Removal(0.0, 0.0, Estimate(0.0, 0.0, 0.0), 0.0, 0.0, (0.0, 0.0), 0)


def removal(
    model: TransformerBridge,
    members: Int[Tensor, " k"],
    alike: Float[Tensor, "neuron feature"],
    state: tuple[
        Float[Tensor, "n d_model"], Float[Tensor, "n neuron"], Float[Tensor, " neuron"], Int[Tensor, " n"]
    ],
    own: Bool[Tensor, " n"],
    other: Bool[Tensor, " n"],
    story: Int[Tensor, " n"],
    sets: int = 50,
    positions: int = 200,
) -> Removal:
    """Ablate a kind's members, and random sets of as many other neurons that are `alike` (in single effect and in how much
    they support the kind's tokens, the last feature). state: residual, activations, means, target."""
    generator = torch.Generator().manual_seed(0)
    if not len(members) or int(own.sum()) < 10:
        return NOTHING
    rivals = matched_sets(members, alike, sets)
    costs, extra = [], []
    for here in (own, other):
        rows = here.nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=generator)[:positions]]
        residual, activations, means, target = state
        all_sets = [members, *rivals]
        cost = set_effects(model, residual[rows], activations[rows], means, target[rows], all_sets)
        extra.append(_over_stories(cost[0] - cost[1:].mean(0), story[rows]))
        costs.append(cost.mean(1))
    gap, support = costs[0] - costs[1], alike[:, -1]
    beaten, by_chance = ((gap[i + 1 :] < gap[i]).float().mean().item() for i in (0, 1))
    supports = support[members].mean().item(), torch.cat([support[s] for s in rivals]).mean().item()
    own_cost, other_cost = costs[0][0].item(), costs[1][0].item()
    return Removal(own_cost, other_cost, difference(*extra), beaten, by_chance, supports, int(own.sum()))


def _over_stories(values: Float[Tensor, " n"], story: Int[Tensor, " n"]) -> Estimate:
    """Mean with a bootstrap interval over stories."""
    table = StoryTable()
    table.add(story, {"value": values})
    return table.estimate("value")


def removals(
    model: TransformerBridge,
    effects: dict[str, Effects],
    single: Float[Tensor, " neuron"],
    state: tuple[
        Float[Tensor, "n d_model"], Float[Tensor, "n neuron"], Float[Tensor, " neuron"], Int[Tensor, " n"]
    ],
    context: Contexts,
    reads: Sides,
    writes: Sides,
    sets: int = 50,
) -> dict[str, Removal]:
    """`removal` of every kind's members, against `sets` sets alike in single effect and in their write on the kind's tokens."""
    found = {}
    for name, effect in effects.items():
        support = torch.cat([effect.write, torch.full((len(single), 1), -1.0)], 1).amax(1)
        alike = torch.stack([single, support], 1)
        where = ways_met(reads, writes, name, effect.pairs, context)
        found[name] = removal(model, effect.members, alike, state, *where, context.story, sets)
    return found


def ways_met(
    reads: Sides, writes: Sides, name: str, pairs: Bool[Tensor, "reading writing"], context: Contexts
) -> tuple[Bool[Tensor, " n"], Bool[Tensor, " n"]]:
    """Positions where a kind applies (it should fire and its token comes next), and those whose next token is none of its.
    pairs: which way of reading goes with which way of writing (`Effects.pairs`, from explore)."""
    read, write = reads[name][0], writes[name][0][:, context.target]
    meets = ((pairs.float().T @ read.float() > 0) & write).any(0)
    return meets, ~write.any(0)


def replicated(effect: Effects, read: Float[Tensor, "neuron reading"]) -> float:
    """Share of a kind's members that meet the threshold of reading again, in effects measured on other text."""
    again = dataclasses.replace(effect, read=read).margin[effect.members] >= 1
    return again.float().mean().item() if len(again) else 0.0


def shares_of(kind: Int[Tensor, " neuron"], kinds: int, single: Float[Tensor, " neuron"]) -> list[float]:
    """Share of all single ablation effects (negative ones counted as none) that each kind's neurons have."""
    effect = single.clamp(min=0)
    return [(effect[kind == i].sum() / effect.sum().clamp(min=1e-12)).item() for i in range(kinds)]


def together(effects: dict[str, Effects], deals: int = 5) -> tuple[int, float, int, float]:
    """Neurons that are members of at least one of some kinds and, if the writes were dealt anew among the neurons, how many
    there would be (mean of several deals); then memberships, and how many of them by chance."""
    union = lambda parts: int(torch.stack([p.margin >= 1 for p in parts]).any(0).sum())  # noqa: E731
    found, neurons = union(effects.values()), len(next(iter(effects.values())).write)
    orders = [torch.randperm(neurons, generator=torch.Generator().manual_seed(seed)) for seed in range(deals)]
    dealt = [union([dataclasses.replace(e, write=e.write[order]) for e in effects.values()]) for order in orders]
    members, chance = (
        sum(part) for part in zip(*((len(e.members), e.by_chance) for e in effects.values()), strict=True)
    )
    return found, sum(dealt) / deals, members, chance


def table(
    effects: dict[str, Effects],
    tests: dict[str, Removal],
    fires: dict[str, float],
    counts: dict[str, tuple[int, float | None]],
    shares: list[float],
) -> str:
    """All kinds as a Markdown table. fires: share of members that fire so on other text. counts: members, and how many by
    chance, of the kinds without this test."""
    heads = ["kind", "neurons", "by chance", "fires so on confirm", "cost where it applies", "elsewhere"]
    heads += ["beyond matched sets", "matched sets below", "support (matched)", "verdict", "share"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for (name, effect), share in zip(effects.items(), shares, strict=False):
        test, mark = tests[name], "°" * (name in lists()["far"])
        cells = [f"{name}{mark}", str(len(effect.members)), f"{effect.by_chance:.0f}", f"{fires[name]:.0%}"]
        cells += [f"**{test.own:.2f}**", f"{test.elsewhere:.2f}", test.beyond.text(), f"{test.beaten:.0%}"]
        cells += [f"{test.support[0]:.1f} ({test.support[1]:.1f})", test.verdict]
        lines.append("| " + " | ".join([*cells, f"{share:.1%}"]) + " |")
    for (name, (count, chance)), share in zip(counts.items(), shares[len(effects) :], strict=True):
        usual = "" if chance is None else f"{chance:.0f}"
        lines.append(f"| {name} | {count} | {usual} | | | | | | | not of this test | {share:.1%} |")
    return "\n".join(lines)
