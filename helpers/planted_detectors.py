"""The detectors of the other notebooks, run on the handwritten model and set beside what was planted in it.

Criteria and thresholds are those of the notebooks, and so are the functions; nothing is tuned to this model.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from helpers import handmade_compare, head_copying, head_patterns, head_tables, rule_effects, rule_kinds
from helpers.comeback_sources import KINDS
from helpers.contexts import Contexts, contexts, vocabulary_of_families
from helpers.corpus import run_streams, walk
from helpers.detector_scores import Score, scored, scored_words
from helpers.estimates import StoryTable
from helpers.handwritten_model import Written
from helpers.handwritten_neurons import class_pairs
from helpers.head_programs import Program
from helpers.neuron_families import find_family
from helpers.planted import (
    AT_WORDS,
    BY_DISTANCE,
    Plan,
    heads_of,
    heads_with,
    names_rule,
    words_of_heads,
)
from helpers.predicates import WordGroups
from helpers.readings import CONTENT, GROUPS, SYNTAX, readings
from helpers.rules import Rule
from helpers.shares import Coding, Moments, shapley_shares
from helpers.stories import CLASSES, Story, encode_story

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
