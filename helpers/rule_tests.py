"""The tests of the kinds of rule on confirm text: does a kind fire as it should there, and is it needed there?"""

import dataclasses

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.contexts import Contexts
from helpers.grammar import class_transitions
from helpers.neuron_families import matched_sets, set_effects
from helpers.rule_effects import CLASSWISE, Effects
from helpers.rule_kinds import Sides, lists


@dataclasses.dataclass(frozen=True)
class Removal:
    """What removing a kind's neurons costs. own: where it should fire and one of its tokens comes next. elsewhere:
    where another token comes next. beaten, beaten_elsewhere: share of matched sets that cost less there."""

    own: float
    elsewhere: float
    beaten: float
    beaten_elsewhere: float
    positions: int


def removal(
    model: TransformerBridge,
    members: Int[Tensor, " k"],
    alike: Float[Tensor, "neuron feature"],
    state: tuple[
        Float[Tensor, "n d_model"], Float[Tensor, "n neuron"], Float[Tensor, " neuron"], Int[Tensor, " n"]
    ],
    own: Bool[Tensor, " n"],
    other: Bool[Tensor, " n"],
    sets: int = 50,
    positions: int = 200,
) -> Removal:
    """Ablate a kind's members, and random sets of as many other neurons that are `alike` (in single effect and in how much
    they support the kind's tokens, say). state: residual, activations, means, target."""
    generator = torch.Generator().manual_seed(0)
    if not len(members) or int(own.sum()) < 10:
        return Removal(0.0, 0.0, 0.0, 0.0, 0)
    rivals = matched_sets(members, alike, sets)
    costs = []
    for here in (own, other):
        rows = here.nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=generator)[:positions]]
        residual, activations, means, target = state
        costs.append(
            set_effects(model, residual[rows], activations[rows], means, target[rows], [members, *rivals]).mean(1)
        )
    beaten = [(cost[1:] < cost[0]).float().mean().item() for cost in costs]
    return Removal(costs[0][0].item(), costs[1][0].item(), *beaten, int(own.sum()))


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
) -> dict[str, Removal]:
    """`removal` of every kind's members, against sets alike in single effect and in their write on the kind's tokens."""
    found = {}
    for name, effect in effects.items():
        support = torch.cat([effect.write, torch.full((len(single), 1), -1.0)], 1).amax(1)
        alike = torch.stack([single, support], 1)
        found[name] = removal(model, effect.members, alike, state, *ways_met(reads, writes, name, context))
    return found


def ways_met(
    reads: Sides, writes: Sides, name: str, context: Contexts
) -> tuple[Bool[Tensor, " n"], Bool[Tensor, " n"]]:
    """Positions where a kind applies (it should fire and its token comes next), and those whose next token is none of its."""
    read, write = reads[name][0], writes[name][0][:, context.target]
    if name == CLASSWISE:
        follows = (class_transitions(context) > 0).float()
        meets = ((follows.T @ read.float() > 0) & write).any(0)
    else:
        meets = (read & write).any(0)
    return meets, ~write.any(0)


def replicated(effect: Effects, read: Float[Tensor, "neuron reading"]) -> float:
    """Share of a kind's members that meet the threshold of reading again, in effects measured on other text."""
    again = dataclasses.replace(effect, read=read).margin[effect.members] >= 1
    return again.float().mean().item() if len(again) else 0.0


def shares_of(kind: Int[Tensor, " neuron"], kinds: int, single: Float[Tensor, " neuron"]) -> list[float]:
    """Share of all single ablation effects (negative ones counted as none) that each kind's neurons have."""
    effect = single.clamp(min=0)
    return [(effect[kind == i].sum() / effect.sum().clamp(min=1e-12)).item() for i in range(kinds)]


def table(
    effects: dict[str, Effects],
    tests: dict[str, Removal],
    fires: dict[str, float],
    counts: dict[str, int],
    shares: list[float],
) -> str:
    """All kinds as a Markdown table. fires: share of members that fire so on other text. counts: of the kinds without a test."""
    heads = ["kind", "neurons", "by chance", "fires so on confirm", "cost where it applies", "elsewhere"]
    heads += ["matched sets that cost less (elsewhere)", "share"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for (name, effect), share in zip(effects.items(), shares, strict=False):
        test, mark = tests[name], "°" * (name in lists()["far"])
        cells = [f"{name}{mark}", str(len(effect.members)), f"{effect.by_chance:.0f}", f"{fires[name]:.0%}"]
        cells += [
            f"**{test.own:.2f}**",
            f"{test.elsewhere:.2f}",
            f"{test.beaten:.0%} ({test.beaten_elsewhere:.0%})",
        ]
        lines.append("| " + " | ".join([*cells, f"{share:.1%}"]) + " |")
    for (name, count), share in zip(counts.items(), shares[len(effects) :], strict=True):
        lines.append(f"| {name} | {count} | | | | | | {share:.1%} |")
    return "\n".join(lines)
