"""What was planted in the handwritten model, from its tables and its rules' names alone.

Nothing here looks at a weight or an activation of the model that is tested: a neuron's rule is evaluated on the text
as it is written, and what it says is read from its table.
"""

import dataclasses
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.baselines import ngram_columns
from helpers.core.contexts import CONTENT, GROUPS, SYNTAX, Contexts, contexts, readings, vocabulary_of_families
from helpers.core.estimates import StoryTable
from helpers.core.files import ROOT, release
from helpers.core.logits import residual_losses
from helpers.core.model import load_model
from helpers.core.scan import run_streams, walk
from helpers.core.stories import CLASSES, EncodedStory, Story, encode_story
from helpers.heads import copying as head_copying
from helpers.heads import measure as head_tables
from helpers.heads import patterns as head_patterns
from helpers.heads.comebacks import KINDS
from helpers.heads.programs import ALL, CLASSES_OF, LATEST, Look, Program
from helpers.neurons.families import WRITE, find_family, reading_positions, supported_tokens
from helpers.neurons.predicates import WordGroups
from helpers.neurons.rules import Rule
from helpers.neurons.writes import group_effect
from helpers.rebuild import compare as handmade_compare
from helpers.rebuild.counts import BACK
from helpers.rebuild.scratch import MEMORY_HEADS, RULES, WORDS_BACK, Written, class_pairs, save, write
from helpers.studies import rule_kinds
from helpers.studies import rule_kinds as rule_effects
from helpers.studies.rule_kinds import Effects, Sides, contrast, seen_in_story, threshold
from helpers.studies.variance import Coding, Moments, shapley_shares

LEAST = 8  # positions at which a neuron's rule has to apply, or nobody could tell from the text what it is
ONLY = 0.9  # share of these positions that have to lie where a kind of rule fires, for a neuron to be of the kind
BY_DISTANCE = {"word before": "the token before", "two back": "two tokens back", "three back": "three tokens back"}
AT_WORDS = ("quotes", "topic", "memory")  # heads of words; where there is none they look at the first position


def without_weights(written: Written) -> Written:
    """The rules alone: what is needed of a written model that has been saved and loaded."""
    return dataclasses.replace(written, weights={})


def heads_of(written: Written, *rules: str) -> Bool[Tensor, " head"]:
    """Which heads have one of some rules."""
    return torch.tensor([rule in rules for rule in written.head_rules])


def words_of_heads(written: Written, tables: dict[str, Tensor]) -> dict[int, Int[Tensor, " k"]]:
    """The tokens that each head of words is to look at: its share of the memory words, the topic's bearers, the marks."""
    parts = iter(tables["memory words"].split(len(tables["memory words"]) // MEMORY_HEADS))
    all_of = {"topic": (tables["topic weight"] > 0).nonzero()[:, 0]}
    all_of["quotes"] = torch.cat([tables["opens"], tables["closes"]])
    rules = enumerate(written.head_rules)
    return {h: next(parts) if rule == "memory" else all_of[rule] for h, rule in rules if rule in AT_WORDS}


def heads_with(written: Written, tables: dict[str, Tensor], rule: str, kind: str) -> Bool[Tensor, " head"]:
    """Which heads of a rule have a word of a class among theirs."""
    words = words_of_heads(written, tables)
    has = [bool((tables["classes"][words[h]] == CLASSES.index(kind)).any()) if h in words else False
           for h in range(len(written.head_rules))]  # fmt: skip
    return heads_of(written, rule) & torch.tensor(has)


def names_rule(program: Program, rule: str, classes: Int[Tensor, " k"]) -> bool:
    """Whether the largest term of a head's program says what was planted; `classes` are those of the head's words.

    A head of words is named by any class of words that half of its words belong to, all alike; an empty head looks at
    all words alike. No program can say "four tokens back".
    """
    main = max(zip(program.shares, program.looks, strict=True), key=lambda pair: pair[0])[1]
    if rule in BY_DISTANCE:
        return main == Look(BY_DISTANCE[rule])
    if rule in ("none", "quotes"):
        return main == (Look("any word", ALL) if rule == "none" else Look("quotation marks", LATEST))
    if rule not in AT_WORDS or main.half_life != ALL:
        return False
    if rule == "topic" and main.at == "words of the theme":
        return True
    numbers = torch.tensor([CLASSES.index(name) for name in CLASSES_OF.get(main.at, ())])
    return torch.isin(classes, numbers).float().mean().item() >= 0.5


def _classes(tables: dict[str, Tensor], context: Contexts):
    first, second, says = class_pairs(tables)
    of = tables["classes"]
    here = (of[context.token][:, None] == second) & (of[context.previous][:, None] == first)
    return here, says @ tables["out"].T


def _pairs(tables: dict[str, Tensor], context: Contexts):
    before, here = tables["pair"].T
    where = (context.token[:, None] == here) & (context.previous[:, None] == before)
    return where, tables["pair says"] @ tables["out"].T


def _quotes(tables: dict[str, Tensor], context: Contexts):
    loud, inside = tables["loud"], inside_quotes(context, tables)
    says = tables["loud quoted"].view(2, len(loud) + 1, -1)[:, : len(loud)].flatten(0, 1)
    here = context.token[:, None] == loud
    return torch.cat([here & ~inside[:, None], here & inside[:, None]], 1), says @ tables["out"].T


def _memory(tables: dict[str, Tensor], context: Contexts):
    words = tables["memory words"]
    seen = torch.cat([seen_in_story(context, part) for part in words.split(32)])
    return seen.T, -torch.nn.functional.one_hot(words, len(tables["out"])).float()


def inside_quotes(context: Contexts, tables: dict[str, Tensor]) -> Bool[Tensor, " n"]:
    """Whether the latest quotation mark up to each position, in its story, opened a quotation."""
    turn = torch.isin(context.token, tables["opens"]).long() - torch.isin(context.token, tables["closes"]).long()
    last = torch.where(turn != 0, torch.arange(len(turn)), -1).cummax(0).values.clamp(min=0)
    return (turn[last] > 0) & (context.story[last] == context.story)


BRINGS = 0.25  # nats that hiding the sources in one head has to cost, as in notebook 03's library
MARGIN = 0.01  # of variance: shares that differ by less are equal but for rounding
HALF = 0.5  # the share of words that notebooks 03 and 05 ask of a head that copies


@torch.no_grad()
def head_kinds(model: TransformerBridge, stories: list[Story]) -> list[str]:
    """Each head's kind by the criteria of notebook 03."""
    table, mean_token = StoryTable(), head_patterns.mean_token_side(model, walk(model, stories, 2048))
    for batch in walk(model, stories, 1024):
        parts = head_patterns.score_parts(model, batch.streams, mean_token)
        table.add(batch.story, head_patterns.pattern_columns(model, batch, parts))
    return head_tables.kinds_of_heads(table, model.cfg.n_heads)


@torch.no_grad()
def activations_on(model: TransformerBridge, stories: list[Story]) -> tuple[Contexts, Float[Tensor, "n neuron"]]:
    """Contexts and activations as `gather` has them, put straight where they belong, a few stories at a time."""
    encoded = [encode_story(story, model.tokenizer, model.cfg.n_ctx) for story in stories]
    context, start = contexts(encoded), 0
    found = torch.empty(len(context.token), model.cfg.d_mlp)
    for story in tqdm(encoded, desc="planted neurons"):
        streams = run_streams(model, story.tokens[None])
        end = start + len(story.tokens) - 1
        found[start:end], start = streams.mlp_post[0, :-1], end
    return context, found


def own_shares(
    context: Contexts, activations: Float[Tensor, "n neuron"], asked: Bool[Tensor, " neuron"], blocks: int = 4
) -> Float[Tensor, "neuron group"]:
    """Notebook 04's shares of the variance of the neurons that are asked about (0 for the others): fitted on the stories
    of half of the blocks, measured on the others."""
    variables = readings(context)
    coding, size = Coding.of(variables), int(asked.sum())
    moments = Moments.zeros(blocks, len(coding.group), size)
    for b in range(blocks):
        here = context.story % blocks == b
        part = {name: values[here] for name, values in variables.items()}
        moments.add(b, coding.columns(part), activations[here][:, asked])
    halves = moments.block(*range(0, blocks, 2)), moments.block(*range(1, blocks, 2))
    own = torch.zeros(len(asked), len(GROUPS) + 1)
    own[asked] = shapley_shares(*halves, coding, size).outputs
    return own


def shares_of(own: Float[Tensor, "neuron group"], *groups: str) -> Float[Tensor, " neuron"]:
    """Some groups' shares together."""
    return own[:, [list(GROUPS).index(group) for group in groups]].sum(1)


def words_lead(own: Float[Tensor, "neuron group"]) -> Bool[Tensor, " neuron"]:
    """Where single words, here and before, explain most of what is explained of a neuron (by MARGIN)."""
    words = shares_of(own, "which word", "previous word")
    return words - (shares_of(own, *GROUPS) - words) >= MARGIN


def sentences(rules: list[Rule], groups: WordGroups, state: str = "inside quotes") -> dict[str, list[set[int]]]:
    """What each proposed rule names: words here and before (numbers of their spelling), pairs of classes (`first` · number
    of classes + `second`), and the sign of a state (0 less there, 1 more)."""
    width, found = len(CLASSES) + 1, {"here": handmade_compare.named_words(rules, "token", groups)}
    found |= {"before": handmade_compare.named_words(rules, "previous", groups), "classes": [], state: []}
    for rule in rules:
        raised = {t.slot: {g for g, x in zip(t.groups, t.amounts, strict=True) if x > 0} for t in rule.terms}
        pairs = {divmod(g, width) for g in raised.get("classes", set())}
        found["classes"].append({(a - 1) * len(CLASSES) + b - 1 for a, b in pairs if a and b})
        found[state].append({int(t.amounts[0] > 0) for t in rule.terms if t.slot == state})
    return found


@dataclasses.dataclass(frozen=True)
class Score:
    """How a detector did. family: the kind of detector that it is. dealt: the smaller of precision and recall that it has
    on average when the planted labels are dealt at random among all that were asked about. wrong: the rules of what was
    found and not planted. places: at how many positions the rules found, and those missed, apply (medians)."""

    name: str
    planted: int
    found: int
    right: int
    family: str
    dealt: float
    wrong: str = ""
    places: str = ""

    @property
    def precision(self) -> float:
        """Share of what was found that had been planted."""
        return self.right / max(1, self.found)

    @property
    def recall(self) -> float:
        """Share of what was planted that was found."""
        return self.right / max(1, self.planted)

    @property
    def smaller(self) -> float:
        """The smaller of precision and recall."""
        return min(self.precision, self.recall)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The planted neurons as they are written, on some text.

    rules: their names. applies: where each neuron's rule says that it fires. says: what its table adds to each token's
    logit (nothing for "current word", which has no table of its own a neuron).
    """

    rules: list[str]
    applies: Bool[Tensor, "n neuron"]
    says: Float[Tensor, "neuron v"]

    @classmethod
    def of(cls, written: Written, tables: dict[str, Tensor], context: Contexts) -> "Plan":
        """The rules of a handwritten model evaluated at every position of some contexts."""
        made = {"classes": _classes, "pairs": _pairs, "quotes": _quotes, "memory": _memory}
        applies, says = [], []
        for rule in dict.fromkeys(written.neuron_rules):
            size = written.neuron_rules.count(rule)
            blank = torch.ones(len(context.token), size, dtype=torch.bool), torch.zeros(size, len(tables["out"]))
            where, what = made[rule](tables, context) if rule in made else blank
            applies.append(where)
            says.append(what)
        return cls(written.neuron_rules, torch.cat(applies, 1), torch.cat(says))

    def of_rules(self, *rules: str) -> Bool[Tensor, " neuron"]:
        """Which neurons have one of some rules."""
        return torch.tensor([rule in rules for rule in self.rules])

    @property
    def asked(self) -> Bool[Tensor, " neuron"]:
        """Neurons whose rule applies often enough in the text."""
        return self.applies.sum(0) >= LEAST

    def word_here(self, tables: dict[str, Tensor], neuron: int) -> int:
        """The token on which a neuron of a pair, or of a word inside or outside quotes, fires."""
        rule = self.rules[neuron]
        words = tables["pair"][:, 1] if rule == "pairs" else tables["loud"].repeat(2)
        return int(words[neuron - self.rules.index(rule)])

    def scored(
        self,
        family: str,
        name: str,
        planted: Bool[Tensor, " neuron"],
        found: Bool[Tensor, " neuron"],
        among: Bool[Tensor, " neuron"] | None = None,
    ) -> Score:
        """`scored` among the neurons that are asked about, with what was found wrongly, and how often rules apply."""
        asked = self.asked if among is None else self.asked & among
        wrong = Counter(self.rules[j] for j in (found & ~planted & asked).nonzero()[:, 0].tolist())
        often = self.applies.sum(0).float()
        medians = [often[planted & asked & side] for side in (found, ~found)]
        places = " / ".join(f"{part.median():.0f}" if len(part) else "–" for part in medians)
        listed = ", ".join(f"{rule} {count}" for rule, count in wrong.most_common())
        return dataclasses.replace(scored(family, name, planted, found, asked), wrong=listed, places=places)

    def fires_only(self, where: Bool[Tensor, "way n"]) -> Bool[Tensor, "neuron way"]:
        """Whether nearly all positions at which a neuron's rule applies are of some kind."""
        hits = torch.cat([part.T.float() @ where.T.float() for part in self.applies.split(256, 1)])
        return hits >= ONLY * self.applies.sum(0).clamp(min=1)[:, None]

    def of_family(self, context: Contexts, name: str) -> Bool[Tensor, " neuron"]:
        """Neurons planted for a family of notebook 02: the rule fires only where it reads, the table supports its words."""
        supports, known = supported_tokens(context, name, self.says.shape[1])
        sides = torch.stack([supports[known], ~supports[known]], 1).float()
        raised = group_effect(self.says[:, known], sides)[:, 0] >= WRITE
        return self.fires_only(reading_positions(context, name)[None])[:, 0] & raised

    def of_kind(self, name: str, effect: Effects, reads: Sides, writes: Sides) -> Bool[Tensor, " neuron"]:
        """Neurons planted for a kind of rule of notebook 04, likewise; where it fires at half of all positions that are
        compared or more, firing only there tells nothing, and nothing counts as planted."""
        inside, against = writes[name]
        known = (inside | against).any(0)
        raised = contrast(self.says[:, known], inside[:, known], against[:, known]) >= threshold(name)
        here, there = (side.sum(1) for side in reads[name])
        only = self.fires_only(reads[name][0]) & (here < there)
        return (only.float() @ effect.pairs.float() * raised.float()).sum(1) > 0


def score_kinds_of_heads(written: Written, kinds: list[str]) -> list[Score]:
    """Heads by where they look: by distance or by words, near by, or at the first position where there is no word."""
    truth = {"local": tuple(BY_DISTANCE), "position": (*BY_DISTANCE, "four back"), "content": AT_WORDS}
    truth["first position"] = AT_WORDS
    return [
        scored("kinds", f"head is “{kind}”", heads_of(written, *rules), torch.tensor([kind in k.split(", ") for k in kinds]))
        for kind, rules in truth.items()
    ]  # fmt: skip


def score_programs(written: Written, tables: dict[str, Tensor], programs: list[Program]) -> Score:
    """How many heads' programs say what was planted; labels dealt: the program of a random head."""
    rules, words = written.head_rules, words_of_heads(written, tables)
    none, n = torch.zeros(0, dtype=torch.long), len(rules)
    own = [(rule, tables["classes"][words.get(h, none)]) for h, rule in enumerate(rules)]
    right = torch.tensor([[names_rule(program, *mine) for mine in own] for program in programs])
    hits, chance = int(right.diagonal().sum()), right.float().mean().item()
    return Score("head's program says the rule", n, n, hits, "kinds", chance)


def score_comebacks(written: Written, tables: dict[str, Tensor], back: StoryTable) -> list[Score]:
    """Heads that bring back names, repeated nouns and closing quotes; back: a `comeback_table`."""
    costs = head_tables.single_costs(back, len(written.head_rules))
    truth = {"name": heads_with(written, tables, "memory", "PROPN")}
    truth["repeated noun"] = heads_with(written, tables, "memory", "NOUN")
    truth["closing quote"] = heads_of(written, "quotes")
    found = {kind: costs[:, list(KINDS).index(kind)] >= BRINGS for kind in truth}
    return [scored("comebacks", f"head brings back: {kind}", mine, found[kind]) for kind, mine in truth.items()]


def score_copying(
    model: TransformerBridge,
    written: Written,
    by_word: Float[Tensor, "head v"],
    onward: Float[Tensor, "d_model d_model"],
    every: int = 4,
    words: int = 30,
) -> list[Score]:
    """Four measures of copying: through the MLP (one in `every` token of the vocabulary), eigenvalues of the direct
    circuit; and on the words that a head looks at most, directly and through the MLP."""
    heads = range(model.cfg.n_heads)
    tokens = torch.arange(0, model.cfg.d_vocab, every)
    seen = [head_copying.own_token(model, h, by_word[h].topk(words).indices, onward)["in top"] for h in heads]
    found = {
        "through the MLP, all words": head_copying.copying(model, tokens, onward)["in top"],
        "by eigenvalues": [head_copying.eigenvalue_copying(model, h) for h in heads],
        "its thirty words, directly": [handmade_compare.copies(model, h, by_word[h], words) for h in heads],
        "its thirty words, through the MLP": seen,
    }
    mine, shares = heads_of(written, "memory"), {name: torch.tensor(share) for name, share in found.items()}
    return [scored("copying", f"head copies ({name})", mine, share >= HALF) for name, share in shares.items()]


def score_families(
    model: TransformerBridge, plan: Plan, context: Contexts, activations: Float[Tensor, "n neuron"]
) -> list[Score]:
    """The families of syntax of notebook 02."""
    rows = []
    for name in vocabulary_of_families()["syntax"]:
        members = find_family(model, context, activations, name).members
        found = torch.isin(torch.arange(len(plan.rules)), members)
        rows.append(plan.scored("families", f"family “{name}”", plan.of_family(context, name), found))
    return rows


def score_shares(plan: Plan, own: Float[Tensor, "neuron group"]) -> list[Score]:
    """Syntax, content and single words in the shares of all neurons."""
    lean, voices = shares_of(own, *SYNTAX) - shares_of(own, *CONTENT), plan.of_rules("current word")
    syntax, content = plan.of_rules("classes", "quotes"), plan.of_rules("memory", "pairs")
    return [
        plan.scored("shares", "neuron reads more syntax", syntax, lean >= MARGIN, ~voices),
        plan.scored("shares", "neuron reads more content", content, lean <= -MARGIN, ~voices),
        plan.scored("shares", "single words lead", plan.of_rules("pairs") | voices, words_lead(own)),
    ]


def score_rule_kinds(
    model: TransformerBridge,
    plan: Plan,
    context: Contexts,
    activations: Float[Tensor, "n neuron"],
    own: Float[Tensor, "neuron group"],
    least: int = 5,
) -> tuple[list[Score], list[Score]]:
    """The kinds of rule of notebook 04 for which at least `least` neurons were planted; and the kinds with none. own:
    `own_shares`."""
    corpus = rule_kinds.Corpus.of(context, rule_kinds.strings(model.tokenizer))
    sides = rule_kinds.reading_sides(corpus), rule_kinds.writing_sides(corpus)
    effects = rule_effects.measure(model, context, activations, *sides)
    sides_of = (rule_effects.correlations(model, side, activations) for side in (context.token, context.target))
    margin = rule_effects.margins(effects, *sides_of, words_lead(own))
    truth = {name: plan.of_kind(name, effect, *sides) for name, effect in effects.items()}
    truth[rule_effects.CLASSWISE] = plan.of_rules("classes")
    truth |= {"erasing the current token": plan.of_rules("current word", "memory")}
    truth |= {"word after word": plan.of_rules("pairs", "current word")}
    rows = [plan.scored("rule kinds", f"kind “{name}”", truth[name], margin[name] >= 1) for name in truth]
    return [row for row in rows if row.planted >= least], [row for row in rows if not row.planted]


def score_sentences(
    rules: list[Rule],
    neurons: Int[Tensor, " k"],
    plan: Plan,
    tables: dict[str, Tensor],
    groups: WordGroups,
    state: str = "inside quotes",
) -> list[Score]:
    """What rules proposed as in notebook 02 for some neurons of pairs, classes and quotes name of what was planted."""
    named, kind = sentences(rules, groups, state), [plan.rules[j] for j in neurons.tolist()]
    number = [j - plan.rules.index(rule) for j, rule in zip(neurons.tolist(), kind, strict=True)]
    mine = {rule: [n for n, r in zip(number, kind, strict=True) if r == rule] for rule in set(kind)}
    before, here = groups.of[0][tables["pair"]].T[:, mine["pairs"]].tolist()
    first, second, _ = class_pairs(tables)
    loud = tables["loud"].repeat(2)[mine["quotes"]]
    truth = {
        "pair neuron's current word": ("pairs", "here", here),
        "pair neuron's word before": ("pairs", "before", before),
        "class neuron's two classes": ("classes", "classes", (first * len(CLASSES) + second)[mine["classes"]].tolist()),
        "quote neuron's word": ("quotes", "here", groups.of[0][loud].tolist()),
        "quote neuron's side": ("quotes", state, [int(n >= len(tables["loud"])) for n in mine["quotes"]]),
    }  # fmt: skip
    return [
        scored_words(
            "sentences", name, values, [row for row, r in zip(named[slot], kind, strict=True) if r == rule]
        )
        for name, (rule, slot, values) in truth.items()
    ]


def listed_alike(
    rules: list[Rule], neurons: Int[Tensor, " k"], plan: Plan, tables: dict[str, Tensor], groups: WordGroups
) -> dict[str, float]:
    """Share of the rules for neurons of pairs and of quotes that list the planted current word, groups of like words
    counted too."""
    found: dict[str, list[bool]] = {"pairs": [], "quotes": []}
    for rule, j in zip(rules, neurons.tolist(), strict=True):
        if plan.rules[j] in found:
            word = plan.word_here(tables, j)
            found[plan.rules[j]].append(handmade_compare.lists_word(rule, "token", word, groups))
    return {kind: sum(hits) / max(1, len(hits)) for kind, hits in found.items()}


def scored(
    family: str,
    name: str,
    planted: Bool[Tensor, " k"],
    found: Bool[Tensor, " k"],
    asked: Bool[Tensor, " k"] | None = None,
) -> Score:
    """Set what a detector found beside what was planted, among the heads or neurons that are asked about.

    With labels dealt at random planted · found / asked of those found are right on average.
    """
    if asked is not None:
        planted, found = planted[asked], found[asked]
    sizes, right = (int(planted.sum()), int(found.sum())), int((planted & found).sum())
    return Score(name, *sizes, right, family, min(sizes) / max(1, len(planted)))


def scored_words(family: str, name: str, planted: list[int], named: list[set[int]]) -> Score:
    """The same for a planted value each (a word, a pair of classes), and the values that a rule names."""
    right = sum(value in group for value, group in zip(planted, named, strict=True))
    by_chance = sum(value in group for value in planted for group in named) / max(1, len(planted))
    found = sum(map(len, named))
    return Score(name, len(planted), found, right, family, by_chance / max(1, len(planted), found))


def table_of(scores: list[Score]) -> pd.DataFrame:
    """Detectors as a table."""
    columns = ["detector", "planted", "found", "of these planted", "precision", "recall", "smaller, labels dealt"]
    rows = [[s.name, s.planted, s.found, s.right, s.precision, s.recall, s.dealt] for s in scores]
    if any(s.places for s in scores):
        columns += ["found, not planted", "places of those found / missed"]
        rows = [[*row, s.wrong or "none", s.places] for row, s in zip(rows, scores, strict=True)]
    return pd.DataFrame(rows, columns=columns).set_index("detector")


def family_score(scores: list[Score], family: str) -> tuple[float, float]:
    """The smaller of precision and recall, averaged over a family's detectors, and the same with labels dealt."""
    mine = [s for s in scores if s.family == family]
    return sum(s.smaller for s in mine) / len(mine), sum(s.dealt for s in mine) / len(mine)


# tables of what is said for a reason that is not the current word
OF_CONTEXT = (
    "before codes",
    "class pairs",
    "pair says",
    "loud quoted",
    "topic map",
    "memory gain",
    *(f"{k} back map" for k in BACK),
)
LOOKS = {"word before": 1, **WORDS_BACK}  # rules that a head follows by distance


def build(
    tables: dict[str, Tensor], rules: Iterable[str] = RULES, name: str = "handwritten"
) -> tuple[TransformerBridge, Written]:
    """Write a model into the cache folder and load it from there, as any other model is loaded."""
    root = Path(os.environ.get("TINYSTORIES_CACHE") or ROOT / "cache")
    written = write(tables, rules)
    release()  # models that are no longer used hold cycles
    return load_model(save(written, root / name)), written


def rung(model: TransformerBridge, stories: Iterable[Story]) -> dict[str, Tensor]:
    """Each scored position's story, next token and loss, and the n-grams' losses."""
    parts = []
    for batch in walk(model, stories, positions=4096):
        loss = residual_losses(model, batch.flat(batch.streams.resid_post), batch.target)
        columns = {"story": batch.story, "target": batch.target, "loss": loss}
        parts.append(columns | ngram_columns(batch))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def quoted_positions(
    story: EncodedStory, opens: Int[Tensor, " k"], closes: Int[Tensor, " m"]
) -> Bool[Tensor, " pos"]:
    """Whether the latest quotation mark up to each position opened a quotation."""
    turn = torch.isin(story.tokens, opens).long() - torch.isin(story.tokens, closes).long()
    last = torch.where(turn != 0, torch.arange(len(turn)), 0).cummax(0).values
    return turn[last] > 0


@torch.no_grad()
def counts_by_quotes(
    model: TransformerBridge, stories: Iterable[Story], opens: Int[Tensor, " k"], closes: Int[Tensor, " m"]
) -> tuple[Float[Tensor, "2 v"], Float[Tensor, "2 v"]]:
    """How often each token comes next outside and inside quotes, and how often the model expects it there."""
    came, hoped = torch.zeros(2, 2, model.cfg.d_vocab)
    for batch in walk(model, stories, positions=4096):
        state = torch.cat([quoted_positions(story, opens, closes)[:-1] for story in batch.encoded]).long()
        came.index_put_((state, batch.target), torch.ones(len(state)), accumulate=True)
        for i in torch.arange(len(state)).split(2048):
            final = model.ln_final(batch.flat(batch.streams.resid_post)[i][None])
            hoped.index_add_(0, state[i], model.unembed(final)[0].softmax(-1))
    return came, hoped


def shuffled(tables: dict[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """The tables with the rows of some of them dealt at random among the rows."""
    generator, dealt = torch.Generator().manual_seed(0), {}
    for name in names:
        dealt[name] = tables[name][torch.randperm(len(tables[name]), generator=generator)]
    return tables | dealt
