"""Rules for neurons: short sentences over readable predicates, found on explore and scored on confirm.

A rule predicts a neuron's activation as a base value plus, for each of a few terms, a fixed amount where the term
is true. A term is "the current token is one of these", "the token before is one of these", "the current word's
class is one of these", "the classes of the last two words are one of these pairs", or a state such as "inside
quotes". Terms are found greedily; the best set of groups of a categorical variable is a prefix of the groups in
order of their mean (Fisher, 1958), so that the search over sets is exact.
"""

import dataclasses

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.contexts import LATEST, Contexts, state_names
from helpers.stories import CLASSES
from helpers.writes import logit_writes

MOST_GROUPS = 12  # words a term may list
LEAST_COUNT = 5  # occurrences on explore that a group needs to be listed
TERMS = 4  # terms a sentence may have
LISTED = ("token", "previous", "tag", "tags", *LATEST)  # variables whose terms list groups
WORTH = 0.01  # share of variance that a further term has to explain


@dataclasses.dataclass(frozen=True)
class Term:
    """Where `variable` takes one of `groups`, the activation is higher by `amount` (lower if negative)."""

    variable: str
    groups: tuple[int, ...]
    amount: float

    def holds(self, variables: dict[str, Int[Tensor, " n"]]) -> Bool[Tensor, " n"]:
        """Where the term is true."""
        return torch.isin(variables[self.variable], torch.tensor(self.groups))

    def text(self, decode) -> str:
        """The term in words; `decode` turns a token id into text."""
        less = "less " if self.amount < 0 else ""
        if self.variable in ("token", "previous"):
            words = ", ".join(f"“{decode(g)}”" for g in self.groups)
            return f"{less}on {words}" if self.variable == "token" else f"{less}right after {words}"
        if self.variable == "tag":
            return f"{less}on " + ", ".join(CLASSES[g] if g >= 0 else "the first position" for g in self.groups)
        if self.variable == "tags":
            return f"{less}on " + ", ".join(_pair(g) for g in self.groups)
        if self.variable in LATEST:
            return (
                f"{less}with {len(self.groups)} forms as the {self.variable}"
                if self.variable != "two tokens back"
                else (f"{less}two tokens after " + ", ".join(f"“{decode(g)}”" for g in self.groups if g >= 0))
            )
        return f"{less}{self.variable}"


def _pair(code: int) -> str:
    before, here = divmod(code, len(CLASSES) + 1)
    names = ["no word", *CLASSES]
    return f"{names[here]} after {names[before]}"


@dataclasses.dataclass(frozen=True)
class Rule:
    """A neuron's rule: base value and terms."""

    neuron: int
    base: float
    terms: tuple[Term, ...]

    def predict(self, variables: dict[str, Int[Tensor, " n"]]) -> Float[Tensor, " n"]:
        """The activation that the rule expects at every position."""
        total = torch.full((len(variables["token"]),), self.base)
        for term in self.terms:
            total += term.amount * term.holds(variables)
        return total

    def text(self, decode) -> str:
        """The rule as one sentence."""
        return (
            "Fires " + "; ".join(term.text(decode) for term in self.terms) + "."
            if self.terms
            else "No rule found."
        )


def rule_variables(context: Contexts) -> dict[str, Int[Tensor, " n"]]:
    """The categorical variables and states that terms are made of."""
    pairs = (context.previous_tag + 1) * (len(CLASSES) + 1) + context.tag + 1
    variables = {"token": context.token, "previous": context.previous, "tag": context.tag, "tags": pairs}
    variables |= dict(zip(LATEST, context.latest.T, strict=True))
    return variables | {name: column.long() for name, column in zip(state_names(), context.states.T, strict=True)}


def propose(
    context: Contexts, activations: Float[Tensor, "n neuron"], first_neuron: int = 0, terms: int = TERMS
) -> list[Rule]:
    """The rules of some neurons from their activations on explore stories; `first_neuron` numbers the first column."""
    variables = rule_variables(context)
    n, neurons = activations.shape
    base = activations.mean(0)
    residual = activations - base
    variance = residual.pow(2).mean(0).clamp(min=1e-12)
    states = state_names()
    coded = {name: torch.unique(variables[name], return_inverse=True, return_counts=True) for name in LISTED}
    truth = torch.stack([variables[name] for name in states], 1).float()
    chosen: list[list[Term]] = [[] for _ in range(neurons)]
    for _ in range(terms):
        splits = {name: _best_list(residual, *coded[name]) for name in LISTED}
        gains = torch.stack([*(gain for gain, _ in splits.values()), *_state_gains(residual, truth)])
        best, winner = gains.max(0)
        for j in (best > WORTH * variance * n).nonzero()[:, 0].tolist():
            w = int(winner[j])
            if w < len(LISTED):
                name = LISTED[w]
                rows = splits[name][1](j)
                groups, inside = tuple(coded[name][0][rows].tolist()), torch.isin(coded[name][1], rows).float()
            else:
                name, groups, inside = states[w - len(LISTED)], (1,), truth[:, w - len(LISTED)]
            share = inside.mean()
            amount = (inside @ residual[:, j] / n / (share * (1 - share))).item()  # the residual has mean zero
            residual[:, j] -= amount * (inside - share)
            base[j] -= amount * share
            chosen[j].append(Term(name, groups, amount))
    return [Rule(first_neuron + j, base[j].item(), tuple(chosen[j])) for j in range(neurons)]


def _state_gains(
    residual: Float[Tensor, "n neuron"], truth: Float[Tensor, "n state"]
) -> Float[Tensor, "state neuron"]:
    """Drop of the sum of squares that each true-or-false state gives each neuron."""
    size = truth.sum(0)[:, None]
    inside = truth.T @ residual
    return torch.where(
        size >= LEAST_COUNT, inside**2 / size.clamp(min=1) + inside**2 / (len(truth) - size).clamp(min=1), 0
    )


def _best_list(residual: Tensor, groups: Tensor, inverse: Tensor, counts: Tensor) -> tuple:
    """For every neuron the best split of a variable's groups in two, one side a list of at most MOST_GROUPS.

    Returns the drop of the sum of squares and a function from a neuron to the rows of its list.
    """
    order = torch.argsort(inverse)
    sums = torch.segment_reduce(residual[order], "sum", lengths=counts, axis=0)
    rows = (counts >= LEAST_COUNT).nonzero()[:, 0]
    n, sums, counts = len(residual), sums[rows], counts[rows].float()
    means = sums / counts[:, None]
    found = []
    for largest in (True, False):
        ranking = means.topk(min(MOST_GROUPS, len(rows)), dim=0, largest=largest).indices
        inside = sums.gather(0, ranking).cumsum(0)
        size = counts[ranking].cumsum(0)
        gain = inside**2 / size + inside**2 / (n - size).clamp(min=1)  # the residual has mean zero
        value, length = gain.max(0)
        found.append((value, ranking, length))
    up = found[0][0] >= found[1][0]

    def listed(j: int) -> Int[Tensor, " k"]:
        _, ranking, length = found[0] if up[j] else found[1]
        return rows[ranking[: int(length[j]) + 1, j]]

    return torch.where(up, found[0][0], found[1][0]), listed


def explained(
    rules: list[Rule], context: Contexts, activations: Float[Tensor, "n neuron"]
) -> Float[Tensor, " neuron"]:
    """Share of each neuron's variance that its rule explains: 1 - squared error over variance; below 0 if it misleads."""
    variables = rule_variables(context)
    predicted = torch.stack([rule.predict(variables) for rule in rules], 1)
    return 1 - (activations - predicted).pow(2).mean(0) / activations.var(0, unbiased=False).clamp(min=1e-12)


def lookup_explained(
    explore: Contexts,
    activations: Float[Tensor, "n neuron"],
    confirm: Contexts,
    held_out: Float[Tensor, "m neuron"],
    prior: float = 5.0,
) -> Float[Tensor, " neuron"]:
    """Share of each neuron's variance on confirm that a full table of means by current token explains.

    No sentence, but the measure of one: means of explore, shrunk towards the overall mean by `prior` positions.
    """
    size = int(max(explore.token.max(), confirm.token.max())) + 1
    sums = torch.zeros(size, activations.shape[1]).index_add_(0, explore.token, activations)
    counts = torch.bincount(explore.token, minlength=size)[:, None]
    table = (sums + prior * activations.mean(0)) / (counts + prior)
    parts = zip(held_out.split(4096), confirm.token.split(4096), strict=True)
    error = sum((part - table[tokens]).pow(2).sum(0) for part, tokens in parts)
    return 1 - error / len(held_out) / held_out.var(0, unbiased=False).clamp(min=1e-12)


def expected_words(
    rules: list[Rule], context: Contexts, vocabulary: int, least: int = 5, prior: float = 20.0
) -> Float[Tensor, "neuron vocabulary"]:
    """What a neuron should promote if its rule is right and it helps: the next tokens that come where it fires.

    The log of a token's share among the next tokens, weighed by how far the rule's prediction is above its mean,
    over its share everywhere; shrunk towards 0 by `prior` positions; nan for tokens seen fewer than `least` times.
    """
    variables = rule_variables(context)
    predicted = torch.stack([rule.predict(variables) for rule in rules], 1)
    weight = (predicted - predicted.mean(0)).clamp(min=0)
    weight = weight / weight.amax(0).clamp(min=1e-9)
    counts = torch.bincount(context.target, minlength=vocabulary).float()
    share = counts / counts.sum()
    inside = torch.zeros(vocabulary, weight.shape[1]).index_add_(0, context.target, weight)
    lift = (inside + prior * share[:, None]) / (weight.sum(0) + prior) / share[:, None].clamp(min=1e-12)
    return torch.where(counts[:, None] >= least, lift.log(), torch.nan).T


def short_text(rule: Rule, decode, words: int = 5) -> str:
    """The rule's sentence with its lists cut to a few groups."""
    terms = [dataclasses.replace(term, groups=term.groups[:words]) for term in rule.terms]
    texts = []
    for term, full in zip(terms, rule.terms, strict=True):
        more = len(full.groups) - len(term.groups)
        texts.append(term.text(decode) + (f" and {more} more" if more else ""))
    return "Fires " + "; ".join(texts) + "." if texts else "No rule found."


def choose_writes(
    model: TransformerBridge,
    expected: Float[Tensor, "neuron vocabulary"],
    known: Bool[Tensor, " vocabulary"],
    seed: int,
    top: int = 10,
    rounds: int = 8,
) -> tuple[Float[Tensor, " neuron"], Float[Tensor, " neuron"]]:
    """Tell each neuron's promoted tokens from another neuron's by what its rule expects to come next.

    Returns each neuron's share of right choices over `rounds` random pairings, and the correlation over known tokens
    between its write and what its rule expects.
    """
    hoped = expected[:, known]
    writes = torch.cat([logit_writes(model, part)[:, known] for part in torch.arange(model.cfg.d_mlp).split(256)])
    promoted = writes.topk(top, dim=1).indices
    own = hoped.gather(1, promoted).mean(1)
    generator = torch.Generator().manual_seed(seed)
    right = []
    for _ in range(rounds):
        other = torch.randperm(len(own), generator=generator)
        theirs = hoped.gather(1, promoted[other]).mean(1)
        itself = other == torch.arange(len(own))
        right.append(torch.where(itself, 0.5, (own > theirs).float()))
    score = [(x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True).clamp(min=1e-9) for x in (hoped, writes)]
    return torch.stack(right).mean(0), (score[0] * score[1]).mean(1)
