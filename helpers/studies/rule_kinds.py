"""Kinds of rule: for each kind where its neurons should fire and which tokens they should support.

A kind may have several ways of being met (a name among names, a word family among families). Its members meet one on
both sides; whether they are needed where it applies is measured beside neurons that meet one side alone.
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
from helpers.core.estimates import Comparison, Estimate, compare, estimate
from helpers.core.files import DATA
from helpers.core.parts import Parts, costs
from helpers.core.scan import Scan
from helpers.core.stories import CLASSES, quotes
from helpers.neurons.find import matched_sets
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


NEAR, FAR = 0.5, 0.25  # effect sizes (deviations) asked of both sides; FAR for what is held over a distance
LARGER = 1.64  # times the deviation of the mean of equally many random tokens: 95 % of such means are below
CLASSWISE = "word class after word class"  # the kind that names nothing definite


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

    def one_sided(self) -> dict[str, Int[Tensor, " k"]]:
        """As many neurons as there are members that meet one side best, and are no members."""
        rest, size = self.margin < 1, min(len(self.members), int((self.margin < 1).sum()))
        best = lambda side: torch.where(rest, _highest(side), -torch.inf).topk(size).indices  # noqa: E731
        return {"raise these words, fire elsewhere": best(self.write), "fire there, raise others": best(self.read)}


def _highest(side: Float[Tensor, "neuron way"]) -> Float[Tensor, " neuron"]:
    return torch.cat([side, torch.full((len(side), 1), -1e9)], 1).amax(1)


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
    found = torch.cat([contrast(logit_writes(model, part, known), *sides) for part in parts])
    least = LARGER / sides[0].sum(1).clamp(min=1).sqrt()
    sizes = [len(pair[0]) for pair in writes.values()]
    rows = zip(writes, found.split(sizes, 1), least.split(sizes), strict=True)
    return {name: part / few.clamp(min=threshold(name)) for name, part, few in rows}


def threshold(name: str) -> float:
    """The effect size that a kind asks for."""
    return FAR if name in lists()["far"] else NEAR


@dataclasses.dataclass(frozen=True)
class Kinds:
    """All kinds of rule in a model: its sides on explore, and every neuron's effects."""

    explore: Scan = dataclasses.field(repr=False)
    corpus: Corpus = dataclasses.field(repr=False)
    writes: Sides = dataclasses.field(repr=False)
    effects: dict[str, Effects] = dataclasses.field(repr=False)

    @classmethod
    def of(cls, explore: Scan) -> "Kinds":
        """Found on explore text, tagged."""
        corpus = Corpus.of(explore.context, strings(explore.model.tokenizer))
        writes = writing_sides(corpus)
        read = read_effects(explore.activations, reading_sides(corpus))
        write = write_effects(explore.model, writes)
        pairs = {name: torch.eye(part.shape[1]).bool() for name, part in read.items()}
        pairs[CLASSWISE] = class_transitions(explore.context) > 0
        return cls(explore, corpus, writes, {name: Effects(read[name], write[name], pairs[name]) for name in read})

    def parts(self, name: str) -> Parts:
        """A kind's neurons, the clearest first."""
        effect = self.effects[name]
        return Parts(name, "neuron", effect.members, effect.margin[effect.members], self.explore.means)

    def where(self, scan: Scan) -> dict[str, tuple[Bool[Tensor, " n"], Bool[Tensor, " n"]]]:
        """Of every kind, the positions where it applies (it should fire, and its token comes next), and those whose next
        token is none of its."""
        reads = reading_sides(Corpus(scan.context, self.corpus.texts, self.corpus.names))
        found = {}
        for name, effect in self.effects.items():
            read, write = reads[name][0], self.writes[name][0][:, scan.target]
            meets = ((effect.pairs.float().T @ read.float() > 0) & write).any(0)
            found[name] = meets, ~write.any(0)
        return found

    def own_kind(self) -> Int[Tensor, " neuron"]:
        """Every neuron's kind, by number: of those that it belongs to the one with the largest margin (CLASSWISE only
        where there is no other); the number of kinds for a neuron that fits nowhere."""
        names, table = list(self.effects), torch.stack([effect.margin for effect in self.effects.values()], 1)
        named = torch.tensor([name != CLASSWISE for name in names])
        table = torch.where(table >= 1, table + 1e6 * named, -torch.inf)
        return torch.where(table.amax(1) >= 1, table.argmax(1), len(names))


@dataclasses.dataclass(frozen=True)
class Needed:
    """What a kind's neurons are worth on other text, nats: where the kind applies, beside neurons that meet one side of it
    and neurons that write as strongly; and where none of its words comes next. best: the places (of the scan) where most
    is lost, each from another story."""

    pair: Comparison
    elsewhere: Estimate
    best: list[int]


def needed(kinds: Kinds, name: str, scan: Scan, where: tuple[Tensor, Tensor], most: int = 250) -> Needed | None:
    """Measure a kind's neurons at up to `most` positions of each sort; None where it has no neurons, or hardly applies."""
    members, generator = kinds.parts(name), torch.Generator().manual_seed(0)
    if not len(members) or int(where[0].sum()) < 10:
        return None
    rows = [part.nonzero()[:, 0] for part in where]
    rows = [part[torch.randperm(len(part), generator=generator)[:most]] for part in rows]
    here, there = (scan.at(part) for part in rows)
    sided = kinds.effects[name].one_sided().items()
    rivals = {rival: dataclasses.replace(members, index=index) for rival, index in sided}
    rivals |= {f"as strong writers {i}": s for i, s in enumerate(matched_sets(kinds.explore, members, count=8), 1)}
    lost = costs(here, members)
    pair = compare(lost, {rival: costs(here, parts) for rival, parts in rivals.items()}, here.story)
    order = lost.argsort(descending=True).tolist()
    best = {int(here.story[i]): int(rows[0][i]) for i in reversed(order)}  # of each story its largest
    best = [int(rows[0][i]) for i in order if best[int(here.story[i])] == int(rows[0][i])]
    return Needed(pair, estimate(costs(there, members), there.story), best)
