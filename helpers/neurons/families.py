"""Families of neurons found by what they read and what they write, and the sets of other neurons to compare them with."""

import dataclasses

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.contexts import Contexts, family_tokens, token_classes, vocabulary_of_families
from helpers.core.estimates import Estimate, StoryTable
from helpers.core.logits import residual_losses
from helpers.core.stories import CLASSES
from helpers.neurons.ablation import losses_without
from helpers.neurons.writes import group_effect, logit_writes

READ, WRITE = 0.5, 0.5  # effect sizes (standard deviations) that membership asks of both sides
NEAR = 10  # tokens after a family's word that count as its scene


@dataclasses.dataclass(frozen=True)
class Family:
    """A family: which positions its neurons should fire on, which tokens they should support, and its members.

    read, write: effect sizes of all neurons. members: neurons at least READ and WRITE on both, the strongest
    first (by the product). reads_here: the positions (of the corpus it was found on). supports: the tokens.
    """

    name: str
    read: Float[Tensor, " neuron"]
    write: Float[Tensor, " neuron"]
    members: Int[Tensor, " k"]
    supports: Bool[Tensor, " vocabulary"]


def reading_positions(context: Contexts, name: str) -> Bool[Tensor, " n"]:
    """Where a family's neurons should fire: on or up to NEAR tokens after a word of a word family, in the same
    story; on the words of a syntax family's classes."""
    data = vocabulary_of_families()
    if name in data["syntax"]:
        penn = set(data["syntax"][name]["reads"])
        return torch.tensor([tag in penn for tag in context.penn])
    here = context.word_family == list(data["families"]).index(name)
    position = torch.arange(len(here))
    last = torch.where(here, position, -NEAR - 1).cummax(0).values
    same_story = context.story[last.clamp(min=0)] == context.story
    return (position - last <= NEAR) & same_story


def supported_tokens(
    context: Contexts, name: str, vocabulary: int
) -> tuple[Bool[Tensor, " vocabulary"], Bool[Tensor, " vocabulary"]]:
    """The tokens that a family's neurons should promote, and all tokens whose class is known (the comparison)."""
    data, classes = vocabulary_of_families(), token_classes(context, vocabulary)
    if name in data["syntax"]:
        wanted = torch.tensor([CLASSES.index(c) for c in data["syntax"][name]["writes"]])
        return torch.isin(classes, wanted), classes >= 0
    return family_tokens(context, list(data["families"]).index(name), vocabulary), classes >= 0


def find_family(
    model: TransformerBridge, context: Contexts, activations: Float[Tensor, "n neuron"], name: str
) -> Family:
    """Find a family on explore text, by effect sizes on both sides and no neuron's number."""
    here = reading_positions(context, name).float()
    read = group_effect(activations.T, torch.stack([here, 1 - here], 1))[:, 0]
    supports, known = supported_tokens(context, name, model.cfg.d_vocab)
    kind = torch.stack([supports[known], ~supports[known]], 1).float()
    parts = torch.arange(model.cfg.d_mlp).split(256)
    write = torch.cat([group_effect(logit_writes(model, part)[:, known], kind)[:, 0] for part in parts])
    members = ((read >= READ) & (write >= WRITE)).nonzero()[:, 0]
    members = members[(read * write)[members].argsort(descending=True)]
    return Family(name, read, write, members, supports)


def matched_sets(
    members: Int[Tensor, " k"],
    features: Float[Tensor, "neuron feature"],
    count: int,
    seed: int = 0,
    pool: int = 20,
    usable: Bool[Tensor, " neuron"] | None = None,
) -> list[Int[Tensor, " k"]]:
    """Random sets of as many neurons: each member is replaced by one of its `pool` nearest in the features
    (say, norm of the write and mean size of the activation, on a log scale), no member and none twice.

    `usable` limits the choice to some neurons.
    """
    if not len(members):
        return [members] * count
    generator = torch.Generator().manual_seed(seed)
    scaled = (features - features.mean(0)) / features.std(0).clamp(min=1e-9)
    distance = torch.cdist(scaled[members], scaled)
    distance[:, members] = torch.inf
    if usable is not None:
        distance[:, ~usable] = torch.inf
    allowed = int(distance[0].isfinite().sum())
    nearest = distance.topk(min(pool + len(members), allowed), largest=False).indices
    sets = []
    for _ in range(count):
        chosen: list[int] = []
        for row in nearest:
            free = [j for j in row.tolist() if j not in chosen][:pool]
            chosen.append(free[int(torch.randint(len(free), (1,), generator=generator))])
        sets.append(torch.tensor(chosen))
    return sets


def rivals(
    family: Family, norm: Float[Tensor, " neuron"], size: Float[Tensor, " neuron"], count: int = 60
) -> dict[str, list[Int[Tensor, " k"]]]:
    """Sets of other neurons that share one half of what makes a family: those that "write" as it does but fail READ,
    and those that "read" as it does but fail WRITE.

    Each member is replaced by one of the ten neurons nearest to it in the norm of the write, in the mean size of the
    activation (both on a log scale) and in the effect size of that half, whose distance counts twice.
    """
    base = [norm.clamp(min=1e-9).log(), size.clamp(min=1e-9).log()]
    halves = {"write": (family.write, family.read < READ), "read": (family.read, family.write < WRITE)}
    return {
        half: matched_sets(family.members, torch.stack([*base, *[effect] * 4], 1), count, pool=10, usable=usable)
        for half, (effect, usable) in halves.items()
    }


def sides(family: Family, sets: list[Int[Tensor, " k"]]) -> tuple[float, float]:
    """Mean effect sizes of the neurons of some sets, on the family's read side and on its write side (0 for none)."""
    neurons = torch.cat(sets)
    return tuple(side[neurons].mean().item() if len(neurons) else 0.0 for side in (family.read, family.write))


@torch.inference_mode()
def set_effects(
    model: TransformerBridge,
    residual: Float[Tensor, "n d_model"],
    activations: Float[Tensor, "n neuron"],
    means: Float[Tensor, " neuron"],
    target: Int[Tensor, " n"],
    sets: list[Int[Tensor, " k"]],
) -> Float[Tensor, "set n"]:
    """Change in loss (nats) at some positions when a set of neurons is set to its means, for each set."""
    before = residual_losses(model, residual, target)
    return losses_without(model, residual, activations, means, target, sets).T - before


NONE = Estimate(0.0, 0.0, 0.0)


@dataclasses.dataclass(frozen=True)
class CausalTest:
    """What ablating a family costs at some positions, beside sets of other neurons.

    effect: nats a token, with an interval over stories. others: the same for each set, by the half that the sets
    share with the family. sizes, curve: the cost of the first k members together, for each k of `sizes`.
    positions: how many were tried.
    """

    effect: Estimate
    others: dict[str, Float[Tensor, " set"]]
    sizes: list[int]
    curve: list[float]
    positions: int

    @property
    def beaten(self) -> float:
        """Share of the sets that cost less than the family, of the kind of which fewer do."""
        shares = [(costs < self.effect.mean).double().mean().item() for costs in self.others.values()]
        return min(shares) if self.positions else 0.0


def positions_of_test(family: Family, context: Contexts, elsewhere: bool) -> Bool[Tensor, " n"]:
    """Where a family should be needed: one of its tokens comes next (for a syntax family: and it reads the word here).

    With `elsewhere`, where it should not: it reads what stands here, but another token comes next.
    """
    own, reads = family.supports[context.target], reading_positions(context, family.name)
    if elsewhere:
        return reads & ~own
    return own & reads if family.name in vocabulary_of_families()["syntax"] else own


def causal_test(
    model: TransformerBridge,
    family: Family,
    rivals: dict[str, list[Int[Tensor, " k"]]],
    context: Contexts,
    activations: Float[Tensor, "n neuron"],
    residual: Float[Tensor, "n d_model"],
    explore_means: Float[Tensor, " neuron"],
    elsewhere: bool = False,
    positions: int = 600,
) -> CausalTest:
    """Ablate a family and its rivals (`neuron_families.rivals`) at up to `positions` of its `positions_of_test`, drawn once.

    A family without members costs nothing.
    """
    rows = positions_of_test(family, context, elsewhere).nonzero()[:, 0]
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:positions]]
    if not len(family.members) or not len(rows):
        return CausalTest(NONE, {half: torch.zeros(len(sets)) for half, sets in rivals.items()}, [], [], 0)
    most = len(family.members)
    sizes = [most] if elsewhere else sorted({k for k in (1, 2, 4, 8, 16, 32, 64) if k < most} | {most})
    tried = [family.members[:k] for k in sizes] + [chosen for sets in rivals.values() for chosen in sets]
    data = (residual[rows], activations[rows], explore_means, context.target[rows])
    costs = set_effects(model, *data, tried)
    counts = [len(sizes), *(len(sets) for sets in rivals.values())]
    own, *others = costs.mean(1).split(counts)
    effect = over_stories(costs[len(sizes) - 1], context.story[rows])
    return CausalTest(effect, dict(zip(rivals, others, strict=True)), sizes, own.tolist(), len(rows))


def over_stories(values: Float[Tensor, " n"], story: Int[Tensor, " n"]) -> Estimate:
    """Mean over positions, with a bootstrap interval over stories."""
    table = StoryTable()
    table.add(story, {"value": values})
    return table.estimate("value")


LABELS = {
    "word": "the sentence will have a word of the family",
    "theme": "the story's theme is the family's",
    "syntax": "on its word, one of its classes comes next",
}


@dataclasses.dataclass(frozen=True)
class Halves:
    """What a detector is chosen and measured on: contexts and activations of a half, and how to standardise."""

    context: Contexts
    activations: Float[Tensor, "n neuron"]
    means: Float[Tensor, " neuron"]
    deviations: Float[Tensor, " neuron"]


@dataclasses.dataclass(frozen=True)
class Units:
    """What is told apart. unit: the unit that each position is scored for, or -1. truth: the label of each unit.
    group: units are compared within groups. story: number of each unit's story."""

    unit: Int[Tensor, " n"]
    truth: Bool[Tensor, " unit"]
    group: Int[Tensor, " unit"]
    story: Int[Tensor, " unit"]


def label_kinds(name: str) -> list[str]:
    """The labels (keys of LABELS) that a family has: word families two, syntax families one."""
    return ["syntax"] if name in vocabulary_of_families()["syntax"] else ["word", "theme"]


def units(context: Contexts, name: str, kind: str) -> Units:
    """The units of a label, with their truth.

    For a syntax family the unit is a position that the family reads; the label says whether the next token's class is
    one that it supports; the group is the current token. For a word family it is a sentence: `sentence_units`.
    """
    data = vocabulary_of_families()
    if kind == "syntax":
        here = reading_positions(context, name)
        wanted = torch.tensor([CLASSES.index(c) for c in data["syntax"][name]["writes"]])
        number = torch.where(here, here.cumsum(0) - 1, -1)
        truth = torch.isin(context.target_tag, wanted)[here]
        return Units(number, truth, context.token[here], context.story[here])
    return sentence_units(context, list(data["families"]).index(name), kind)


def sentence_units(context: Contexts, family: int, kind: str, seed: int = 0) -> Units:
    """Sentences, each scored on its first tokens; the group is how many these are.

    One with a word of the family is scored on the tokens before the first such word (one that begins with it is left
    out). One without is scored on as many tokens as one of those, drawn at random among the shorter ones, so that the
    two kinds differ in nothing but what stands in these tokens.
    """
    n = len(context.sentence)
    length = torch.bincount(context.sentence)
    first = length.cumsum(0) - length
    place = torch.arange(n) - first[context.sentence]
    hit = torch.where(context.word_family == family, place, n)
    cut = torch.full_like(length, n).scatter_reduce_(0, context.sentence, hit, "amin")
    spoken = cut < n
    lengths = cut[spoken & (cut > 0)].sort().values
    shorter = torch.searchsorted(lengths, length)  # how many of the drawn lengths are below the sentence's own
    draw = torch.rand(len(length), generator=torch.Generator().manual_seed(seed)) * shorter
    drawn = lengths[draw.long().clamp(max=max(0, len(lengths) - 1))] if len(lengths) else torch.zeros_like(cut)
    cut = torch.where(spoken, cut, torch.where(shorter > 0, drawn, 0))
    kept = cut > 0
    number = torch.where(kept, kept.cumsum(0) - 1, -1)
    unit = torch.where(place < cut[context.sentence], number[context.sentence], -1)
    story, theme = context.story[first], context.theme[first] == family
    return Units(unit, (spoken if kind == "word" else theme)[kept], cut[kept], story[kept])


def unit_scores(half: Halves, told: Units, members: Int[Tensor, " k"]) -> Float[Tensor, " unit"]:
    """Mean activation of some neurons over each unit's positions, in standard deviations from their means (0 for none)."""
    here = told.unit >= 0
    values = half.activations[here][:, members]
    values = ((values - half.means[members]) / half.deviations[members].clamp(min=1e-9).float()).sum(1)
    total = torch.zeros(len(told.truth)).index_add_(0, told.unit[here], values / max(1, len(members)))
    return total / torch.bincount(told.unit[here], minlength=len(total)).clamp(min=1)


def detect(
    explore: Halves, confirm: Halves, members: Int[Tensor, " k"], others: list[Tensor], name: str, kind: str
) -> dict[str, float | Estimate]:
    """How well a family tells a label's units apart on confirm.

    "AUC": within groups, with an interval over stories; "matched": the 95th percentile of the same for other sets of
    neurons; "lookup": the area over all units, whatever their group, of the label's share on explore in the unit's
    group (for a syntax family a table of the current token), "pooled" the family's; precision, recall and F1 at the
    threshold chosen on explore; "share": of units that have the label.
    """
    known, told = units(explore.context, name, kind), units(confirm.context, name, kind)
    scores = unit_scores(confirm, told, members)
    found = detection(scores, told.truth, best_threshold(unit_scores(explore, known, members), known.truth))
    found["pooled"] = found.pop("AUC")
    areas = [grouped_area(unit_scores(confirm, told, chosen), told).mean for chosen in others]
    found["lookup"] = detection(lookup(known, told), told.truth, 0.0)["AUC"]
    found |= {"AUC": grouped_area(scores, told, 200), "matched": torch.tensor(areas).quantile(0.95).item()}
    return found | {"share": told.truth.float().mean().item()}


def lookup(known: Units, told: Units, prior: float = 1.0) -> Float[Tensor, " unit"]:
    """The share of units with the label in each unit's group, as counted on other text (`prior` units at the mean)."""
    size = int(max(known.group.max(), told.group.max())) + 1
    count = torch.bincount(known.group, minlength=size)
    hits = torch.bincount(known.group, known.truth.double(), minlength=size)
    return ((hits + prior * known.truth.double().mean()) / (count + prior))[told.group].float()


def grouped_area(scores: Float[Tensor, " unit"], told: Units, draws: int = 0) -> Estimate:
    """Area under the ROC curve within groups, with a bootstrap interval over stories (none without draws).

    The chance that of two units of one group, of which one has the label, that one scores higher (ties count half);
    a group of p units with the label and q without weighs p q / (p + q) (van Elteren, 1960). 0.5 if no group has both.
    """
    stories = int(told.story.max()) + 1
    drawn = torch.randint(stories, (draws, stories), generator=torch.Generator().manual_seed(0))
    times = torch.zeros(draws, stories).scatter_add_(1, drawn, torch.ones(draws, stories))
    weights = torch.cat([torch.ones(1, stories), times])[:, told.story].double()
    _, rank = torch.unique(scores, return_inverse=True)
    _, group = torch.unique(told.group, return_inverse=True)
    keys, bins = torch.unique(group * (len(rank) + 1) + rank, return_inverse=True)
    of_bin, width = keys // (len(rank) + 1), int(group.max()) + 1
    yes, no = (torch.zeros(len(weights), len(keys)).double().index_add_(1, bins, weights * side)
               for side in (told.truth, ~told.truth))  # fmt: skip
    p, q = (torch.zeros(len(weights), width).double().index_add_(1, of_bin, side) for side in (yes, no))
    below = no.cumsum(1) - no / 2 - (q.cumsum(1) - q)[:, of_bin]
    wins = torch.zeros_like(p).index_add_(1, of_bin, yes * below)
    size = (p + q).clamp(min=1)
    total = (p * q / size).sum(1)
    area = torch.where(total > 0, (wins / size).sum(1) / total.clamp(min=1e-9), 0.5)
    if not draws:
        return Estimate(area[0].item(), area[0].item(), area[0].item())
    low, high = area[1:].quantile(torch.tensor([0.025, 0.975], dtype=area.dtype)).tolist()
    return Estimate(area[0].item(), low, high)


def detection(scores: Float[Tensor, " k"], truth: Bool[Tensor, " k"], threshold: float) -> dict[str, float]:
    """Precision, recall, F1 of `scores >= threshold`, and the area under the ROC curve (ties count half)."""
    guess = scores >= threshold
    hits = (guess & truth).sum().item()
    precision, recall = hits / max(1, guess.sum().item()), hits / max(1, truth.sum().item())
    everything = torch.zeros(len(truth), dtype=torch.long)
    return {
        "precision": precision,
        "recall": recall,
        "F1": 2 * precision * recall / max(1e-9, precision + recall),
        "AUC": grouped_area(scores, Units(everything, truth, everything, everything)).mean,
    }


def best_threshold(scores: Float[Tensor, " k"], truth: Bool[Tensor, " k"]) -> float:
    """The threshold of the highest F1, from a grid of the scores' quantiles (to be chosen on explore)."""
    grid = scores.quantile(torch.linspace(0.02, 0.98, 49)).tolist()
    return max(grid, key=lambda threshold: detection(scores, truth, threshold)["F1"])


ALIKE = 0.1  # standard deviations: activations nearer to each other than this count as the same


def read_tokens(family: Family, context: Contexts) -> Bool[Tensor, " vocabulary"]:
    """The tokens that stand, at least half of the time, where the family should fire."""
    every = torch.bincount(context.token, minlength=len(family.supports))
    inside = torch.bincount(context.token[reading_positions(context, family.name)], minlength=len(family.supports))
    return (2 * inside >= every) & (every > 0)


def fit(
    family: Family,
    context: Contexts,
    strongest: Int[Tensor, " k"],
    promoted: Int[Tensor, " k"],
    suppressed: Int[Tensor, " k"],
) -> str:
    """Whether a neuron's strongest, promoted and suppressed tokens are those that its family's name says, in words.

    A half of the name fits where at least half of the tokens do. What a word family reads is a scene of any words, so
    that only its writing half can be judged.
    """
    read = read_tokens(family, context)
    reads, writes, against = (
        int(side.sum()) for side in (read[strongest], family.supports[promoted], read[suppressed])
    )
    of_writing = f"of the {len(promoted)} tokens that it promotes most {writes} are supported by the family"
    wrote = 2 * writes >= len(promoted)
    if family.name not in vocabulary_of_families()["syntax"]:
        verdict = "the writing half of the name fits" if wrote else "the writing half of the name does not fit"
        return f"What it should read is a scene, which no list of tokens shows; {of_writing}: {verdict}."
    verdict = {
        (True, True): "both halves of the name fit",
        (True, False): "only the reading half of the name fits",
        (False, True): "only the writing half of the name fits",
        (False, False): "neither half of the name fits",
    }[2 * reads >= len(strongest), wrote]
    text = f"Of the {len(strongest)} tokens on which it is strongest {reads} are read by the family, and {of_writing}: "
    text += (
        f"{verdict}. Of the {len(suppressed)} that it suppresses most {against} are words that the family reads"
    )
    return text + (": it keeps a second such word away." if 2 * against >= len(suppressed) else ".")


def loudness(there: float, mean: float, deviation: float) -> str:
    """What a neuron does at some positions, in words: its mean activation there against its mean everywhere."""
    gap = (there - mean) / max(deviation, 1e-9)
    text = f"Its mean activation is {there:.2f} there and {mean:.2f} everywhere"
    if abs(gap) < ALIKE:
        return f"{text}: no difference (less than {ALIKE} of its standard deviations)."
    if gap > 0:
        return f"{text}: it is louder there, so what is missed is what it says."
    return f"{text}: it is quieter there, so what hurts is the mean in its place, which speaks where it is silent."


def falls(sizes: list[int], curve: list[float]) -> str:
    """What to say of a family whose cost falls as more members are removed; empty if it does not."""
    peak = max(range(len(curve)), key=curve.__getitem__, default=0)
    if not curve or curve[-1] >= curve[peak]:
        return ""
    first = (
        "the first alone costs more"
        if sizes[peak] == 1
        else f"the first {sizes[peak]} cost more, {curve[peak]:.3f}"
    )
    return f" ({first}: what the other members say at these words hurts more than it helps)"


def missing(explained: float, at_most: float) -> str:
    """How much of what a rule misses is its length: shares of variance that it explains, and that a list of every value does."""
    now, most = round(100 * explained), round(100 * at_most)
    part = (
        "most of what is missing is length"
        if 2 * (most - now) > 100 - now
        else "little of what is missing is length"
    )
    return (
        f"{100 - now} of 100 points are left unexplained; listing every value gains {most - now} of them, and {100 - most} "
        f"are reached at no length that was tried: {part}."
    )
