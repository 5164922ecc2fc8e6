"""Kinds of rule: for each kind where its neurons should fire and which tokens they should support.

A kind may have several ways of being met (a name among names, a word family among families); `rule_effects` measures
which neurons meet one on both sides.
"""

import dataclasses
import json
from functools import cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.contexts import (
    Contexts,
    family_tokens,
    fraction,
    state_names,
    token_classes,
    vocabulary_of_families,
    within,
)
from helpers.core.estimates import Estimate, StoryTable, difference
from helpers.core.files import DATA
from helpers.core.scan import gather
from helpers.core.stories import CLASSES, Story, quotes
from helpers.neurons.families import matched_sets, set_effects
from helpers.neurons.writes import class_transitions, logit_writes

SEEN = 2  # occurrences on explore that a token needs to take part in a write's effect
LIFT, OFTEN = 2.0, 8  # a phase's words: this many times as frequent in it, and seen in it so often
NAMES = 24  # names that the cast is looked for among
OPENING = ('"', "“")  # marks that open a quotation when they stand alone
Sides = dict[str, tuple[Bool[Tensor, "way item"], Bool[Tensor, "way item"]]]


@cache
def lists() -> dict:
    """The kinds with their criteria in words, and the word lists behind them (rule_kinds.json)."""
    return json.loads((DATA / "rule_kinds.json").read_text(encoding="utf-8"))


def strings(tokenizer) -> list[str]:
    """Every token as text."""
    return [tokenizer.decode([i]) for i in range(len(tokenizer))]


def are(texts: list[str], words: list[str]) -> Bool[Tensor, " vocabulary"]:
    """Which tokens are one of some words, whatever their case and with or without a blank before."""
    wanted = set(words)
    return torch.tensor([text.strip().lower() in wanted for text in texts])


def latest(yes: Bool[Tensor, " n"], no: Bool[Tensor, " n"], story: Int[Tensor, " n"]) -> Bool[Tensor, "2 n"]:
    """Where the latest of two kinds of position, at or before this one in the same story, was the one or the other."""
    place = torch.arange(len(yes))
    last = torch.where(yes | no, place, -1).cummax(0).values
    known = (last >= 0) & (story[last.clamp(min=0)] == story)
    return torch.stack([known & yes[last.clamp(min=0)], known & no[last.clamp(min=0)]])


@dataclasses.dataclass(frozen=True)
class Corpus:
    """What the kinds are read from: contexts, every token as text, and the names that the cast is made of."""

    context: Contexts
    texts: list[str]
    names: Int[Tensor, " name"]

    @classmethod
    def of(cls, context: Contexts, texts: list[str]) -> "Corpus":
        """With the names that come next most often in these contexts (to be taken from explore)."""
        named = context.target[(context.target_tag == CLASSES.index("PROPN")) & context.target_whole]
        counts = torch.bincount(named, minlength=len(texts))
        counts[counts < OFTEN] = 0
        return cls(context, texts, counts.topk(min(NAMES, int((counts > 0).sum()))).indices)

    def here(self, words: str) -> Bool[Tensor, " n"]:
        """Where the current token is one of a list's words."""
        return are(self.texts, lists()[words])[self.context.token]

    def penn(self, *names: str) -> Bool[Tensor, " n"]:
        """Where the current word's Penn class is one of some."""
        return torch.tensor([name in names for name in self.context.penn])

    def state(self, name: str) -> Bool[Tensor, " n"]:
        """Where a state of the contexts is true."""
        return self.context.states[:, state_names().index(name)]


def phases(context: Contexts) -> dict[str, Bool[Tensor, " n"]]:
    """Which positions belong to each phase of their story: first sentence, the next third, last fifth, last sentence."""
    place, opening = fraction(context), context.states[:, state_names().index("in the opening sentence")]
    stories = int(context.story.max()) + 1
    last = torch.zeros(stories, dtype=torch.long).scatter_reduce(0, context.story, context.sentence, "amax")
    moral = context.sentence == last[context.story]
    return {
        "story opening": opening, "story problem": ~opening & (place < 0.4), "story ending": place >= 0.8, "story moral": moral,
    }  # fmt: skip


def _plain_reads(corpus: Corpus) -> dict[str, Bool[Tensor, " n"]]:
    """Where the kinds fire that have one way of being met and are compared with everywhere else."""
    tokens, texts = corpus.context.token, corpus.texts
    has = lambda test: torch.tensor([test(text) for text in texts])[tokens]  # noqa: E731
    quote, quoted = has(lambda text: quotes(text) % 2 == 1), corpus.state("inside quotes")
    say, comma = corpus.here("saying"), has(lambda text: text.strip() in (",", ":"))
    return {
        "base form after to or a modal": corpus.penn("TO", "MD"),
        "dialogue: close the quote": quoted,
        "dialogue: who speaks": quote & ~quoted,
        "dialogue: open a quote": say | (comma & torch.cat([say[:1], say[:-1]])) | has(lambda text: "\n" in text),
        "sentence end": within(corpus.context.sentence) >= 8,
        "sentence start": has(lambda text: any(mark in text for mark in ".!?")),
        "word completion": corpus.state("within a word"),
    } | phases(corpus.context)


def reading_sides(corpus: Corpus) -> Sides:
    """Where each kind's neurons should fire, and the positions to compare with."""
    c = corpus.context
    sides = {name: (here[None], ~here[None]) for name, here in _plain_reads(corpus).items()}
    past = latest(corpus.penn("VBD"), corpus.penn("VBP", "VBZ"), c.story)
    many, one = corpus.penn("NNS", "NNPS") | corpus.here("plural"), corpus.penn("NN") | corpus.here("singular")
    number, gender = latest(many, one, c.story), latest(corpus.here("female"), corpus.here("male"), c.story)
    sides |= {"past tense": (past[:1], past[1:])}
    sides |= {"number": (number, number.flip(0)), "gender": (gender, gender.flip(0))}
    names = vocabulary_of_families()["families"]
    families = torch.stack([corpus.state(f"after {name} words in this story") for name in names])
    cast = seen_in_story(c, corpus.names)
    kinds = torch.stack([c.tag == i for i in range(len(CLASSES))])
    several = {"theme words": families, "cast": cast, "word class after word class": kinds}
    return sides | {name: (ways, ~ways) for name, ways in several.items()}


def seen_in_story(context: Contexts, tokens: Int[Tensor, " k"]) -> Bool[Tensor, "k n"]:
    """Whether each token has stood in the story, at or before each position."""
    hit = (context.token == tokens[:, None]).long()
    total = hit.cumsum(1)
    start = torch.arange(hit.shape[1]) - within(context.story)
    return total > (total - hit)[:, start]


def _plain_writes(corpus: Corpus) -> dict[str, Bool[Tensor, " vocabulary"]]:
    """The tokens of the kinds that have one way of being met and are compared with all others."""
    c, texts, size = corpus.context, corpus.texts, len(corpus.texts)
    test = lambda holds: torch.tensor([holds(text) for text in texts])  # noqa: E731
    classes = token_classes(c, size)
    speakers = (classes == CLASSES.index("PROPN")) | (classes == CLASSES.index("PRON"))
    goes_on = _mostly(corpus, corpus.state("within a word"), after=True)
    return {
        "dialogue: close the quote": test(lambda t: quotes(t) == 1 and t.strip()[:1] not in OPENING),
        "dialogue: who speaks": are(texts, lists()["saying"]) | speakers,
        "dialogue: open a quote": test(lambda t: t.strip() in OPENING),
        "sentence end": test(lambda t: t.strip(' "”') in (".", "!", "?")),
        "sentence start": test(lambda t: t.strip()[:1].isupper() or "\n" in t),
        "word completion": goes_on & test(lambda t: t[:1].isalpha()),
    } | {name: frequent(c, here, size) for name, here in phases(c).items()}


def writing_sides(corpus: Corpus) -> Sides:
    """Which tokens each kind's neurons should support, and the tokens to compare with; from explore."""
    c, size = corpus.context, len(corpus.texts)
    known = torch.bincount(c.target, minlength=size) >= SEEN
    sides = {name: (here[None], ~here[None]) for name, here in _plain_writes(corpus).items()}
    past, base, present = (_mostly(corpus, corpus.penn(*names)) for names in (("VBD",), ("VB",), ("VBP", "VBZ")))
    sides |= {
        "past tense": (past[None], (base | present)[None]),
        "base form after to or a modal": (base[None], past[None]),
    }
    for name, lists_of in {"number": ("plural", "singular"), "gender": ("female", "male")}.items():
        both = torch.stack([are(corpus.texts, lists()[words]) for words in lists_of])
        sides[name] = both, both.flip(0)
    families = torch.stack([family_tokens(c, i, size) for i in range(len(vocabulary_of_families()["families"]))])
    names, classes = torch.nn.functional.one_hot(corpus.names, size).bool(), token_classes(c, size)
    kinds = torch.stack([classes == i for i in range(len(CLASSES))])
    sides |= {"theme words": (families, ~families), "word class after word class": (kinds, ~kinds)}
    sides["cast"] = names, names.any(0) & ~names
    return {name: (inside & known, against & known) for name, (inside, against) in sides.items()}


def _mostly(corpus: Corpus, here: Bool[Tensor, " n"], after: bool = False) -> Bool[Tensor, " vocabulary"]:
    """Tokens that are, at least half of the time, at such a position (or, with `after`, right after one)."""
    tokens, size = corpus.context.target if after else corpus.context.token, len(corpus.texts)
    return torch.bincount(tokens[here], minlength=size) * 2 >= torch.bincount(tokens, minlength=size).clamp(min=1)


def frequent(context: Contexts, here: Bool[Tensor, " n"], size: int) -> Bool[Tensor, " vocabulary"]:
    """Tokens that come next at least LIFT times as often at some positions as elsewhere."""
    inside = torch.bincount(context.target[here], minlength=size)
    outside = torch.bincount(context.target[~here], minlength=size)
    rate = (outside + 1) / max(1, int((~here).sum()))
    return (inside >= OFTEN) & (inside / max(1, int(here.sum())) >= LIFT * rate)


NEAR, FAR = (
    0.5,
    0.25,
)  # effect sizes (standard deviations) asked of both sides; FAR for what is held over a distance
LARGER = 1.64  # times the deviation of the mean of equally many random tokens: 95 % of such means are below
CORRELATION = 0.15  # over tokens, for the two kinds that are read off a correlation
CLASSWISE, ERASING, FOLLOWING = "word class after word class", "erasing the current token", "word after word"
GENERAL = (CLASSWISE, ERASING, FOLLOWING)  # kinds that name nothing definite; all others are special kinds


def contrast(
    values: Float[Tensor, "k item"], inside: Bool[Tensor, "way item"], against: Bool[Tensor, "way item"]
) -> Float[Tensor, "k way"]:
    """Mean of each row inside less its mean against, in standard deviations of the row; 0 where a side is empty."""
    deviation = values.std(1, keepdim=True).clamp(min=1e-9)
    one, two = inside.float(), against.float()
    enough = (one.sum(1) >= 1) & (two.sum(1) >= 1)
    gap = values @ one.T / one.sum(1).clamp(min=1) - values @ two.T / two.sum(1).clamp(min=1)
    return torch.where(enough, gap / deviation, 0)


@dataclasses.dataclass(frozen=True)
class Effects:
    """Effect sizes of every neuron for one kind, in units of their thresholds.

    read, write: of every way. pairs: which way of reading goes with which way of writing.
    """

    read: Float[Tensor, "neuron reading"]
    write: Float[Tensor, "neuron writing"]
    pairs: Bool[Tensor, "reading writing"]

    @property
    def margin(self) -> Float[Tensor, " neuron"]:
        """The smaller side of a neuron's best pair: at least 1 for a member."""
        best = torch.full((len(self.read),), -torch.inf)
        for i, j in self.pairs.nonzero().tolist():
            best = torch.maximum(best, torch.minimum(self.read[:, i], self.write[:, j]))
        return best

    @property
    def members(self) -> Int[Tensor, " k"]:
        """Neurons that meet both thresholds, the clearest first."""
        margin = self.margin
        return margin.argsort(descending=True)[: int((margin >= 1).sum())]

    @property
    def by_chance(self) -> float:
        """How many members there would be, on average, if the writes were dealt anew among the neurons."""
        ways = (self.read >= 1).float() @ self.pairs.float() @ (self.write >= 1).float().T
        return (ways > 0).float().mean().item() * len(self.read)


def read_effects(activations: Float[Tensor, "n neuron"], reads: Sides) -> dict[str, Float[Tensor, "neuron way"]]:
    """How much higher each neuron is where a kind should fire, in units of the kind's threshold."""
    sides = [torch.cat([pair[i] for pair in reads.values()]) for i in (0, 1)]
    found = torch.cat([contrast(part.T.contiguous(), *sides) for part in activations.split(256, 1)])
    parts = found.split([len(pair[0]) for pair in reads.values()], 1)
    return {name: part / threshold(name) for name, part in zip(reads, parts, strict=True)}


def write_effects(model: TransformerBridge, writes: Sides) -> dict[str, Float[Tensor, "neuron way"]]:
    """How much more each neuron supports a kind's tokens, likewise; few tokens need a larger effect (LARGER)."""
    sides = [torch.cat([pair[i] for pair in writes.values()]) for i in (0, 1)]
    known = (sides[0] | sides[1]).any(0)
    sides = [side[:, known] for side in sides]
    parts = torch.arange(model.cfg.d_mlp).split(256)
    found = torch.cat([contrast(logit_writes(model, part)[:, known], *sides) for part in parts])
    least = LARGER / sides[0].sum(1).clamp(min=1).sqrt()
    sizes = [len(pair[0]) for pair in writes.values()]
    rows = zip(writes, found.split(sizes, 1), least.split(sizes), strict=True)
    return {name: part / few.clamp(min=threshold(name)) for name, part, few in rows}


def threshold(name: str) -> float:
    """The effect size that a kind asks for."""
    return FAR if name in lists()["far"] else NEAR


def measure(
    model: TransformerBridge,
    context: Contexts,
    activations: Float[Tensor, "n neuron"],
    reads: Sides,
    writes: Sides,
) -> dict[str, Effects]:
    """Effect sizes of all neurons on both sides of every kind, and of the two kinds that are correlations."""
    read, write = read_effects(activations, reads), write_effects(model, writes)
    found = {}
    for name in reads:
        pairs = torch.eye(read[name].shape[1]).bool() if name != CLASSWISE else class_transitions(context) > 0
        found[name] = Effects(read[name], write[name], pairs)
    return found


def correlations(
    model: TransformerBridge,
    token: Int[Tensor, " n"],
    activations: Float[Tensor, "n neuron"],
    least: int = 5,
    dealt: Int[Tensor, " neuron"] | None = None,
) -> Float[Tensor, " neuron"]:
    """Correlation over tokens between a neuron's mean activation where a token stands and its write on that token.

    With the current token in `token`: whether it supports or erases what it fires on. With the next token: whether
    it supports what comes next. `dealt` gives every neuron another's write, a control.
    """
    tokens, inverse, counts = torch.unique(token, return_inverse=True, return_counts=True)
    kept = counts >= least
    means = torch.zeros(len(tokens), activations.shape[1]).index_add_(0, inverse, activations) / counts[:, None]
    rows = []
    for part in torch.arange(model.cfg.d_mlp).split(256):
        source = part if dealt is None else dealt[part]
        a, b = means[kept][:, part].T, logit_writes(model, source)[:, tokens[kept]]
        a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
        rows.append((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=1e-12))
    return torch.cat(rows)


def margins(
    effects: dict[str, Effects],
    erasing: Float[Tensor, " neuron"],
    following: Float[Tensor, " neuron"],
    lookup: Bool[Tensor, " neuron"],
) -> dict[str, Float[Tensor, " neuron"]]:
    """Every kind's margin (at least 1 for a member). erasing, following: `correlations` with the current and the next
    token. lookup: whether single words (here or before) explain most of what is explained of a neuron."""
    found = {name: effect.margin for name, effect in effects.items()}
    found[ERASING] = -erasing / CORRELATION
    found[FOLLOWING] = torch.where(lookup, following / CORRELATION, -torch.inf)
    return found


def assign(
    margin: dict[str, Float[Tensor, " neuron"]], general: tuple[str, ...] = GENERAL
) -> Int[Tensor, " neuron"]:
    """Every neuron's kind, by number: of the special kinds that it belongs to the one with the largest margin, else of
    the general ones; the number of kinds for a neuron that fits nowhere."""
    names = list(margin)
    table = torch.stack(list(margin.values()), 1)
    special = torch.tensor([name not in general for name in names])
    table = torch.where(table >= 1, table + 1e6 * special, -torch.inf)
    return torch.where(table.amax(1) >= 1, table.argmax(1), len(names))


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


def special_tests(
    model: TransformerBridge, halves: tuple[list[Story], list[Story]], corpus: Corpus, sets: int = 20
) -> dict[str, Removal]:
    """The test of every special kind in a model: members found on the first half, removed on the second, against `sets` matched sets.

    corpus: names for the cast. Sets are matched in the size of what a neuron writes (the norm of its weights times its
    deviation), which stands for its single effect.
    """
    context, activations, _ = gather(model, halves[0])
    texts = strings(model.tokenizer)
    seen = Corpus(context, texts, corpus.names)
    reads, writes = reading_sides(seen), writing_sides(seen)
    effects = measure(model, context, activations, reads, writes)
    special = {name: effect for name, effect in effects.items() if name not in GENERAL}
    size, means = model.W_out[0].norm(dim=1) * activations.std(0), activations.mean(0)
    del activations
    held, held_activations, held_residual = gather(model, halves[1])
    again = reading_sides(Corpus(held, texts, corpus.names))
    state = held_residual, held_activations, means, held.target
    return removals(model, special, torch.nan_to_num(size), state, held, again, writes, sets)
