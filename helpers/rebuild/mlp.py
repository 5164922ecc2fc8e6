"""Neurons made by hand from rules, and what else can stand in the MLP's place.

A handmade neuron is made from its rule alone; no weight and no activation of the neuron that it replaces is looked
at. (The rule itself was found by looking at that neuron's activations on explore stories.)

Source of the method: handmade neurons as in Curve Circuits (Cammarata et al., 2021).
"""

import dataclasses

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.contexts import state_names
from helpers.core.logits import layernorm_scale, logits_in_chunks, residual_losses
from helpers.core.scan import Scan
from helpers.neurons.predicates import Coded
from helpers.neurons.rules import Rule, Term, predictions

MULTIPLES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)  # of the closed form's strength, that are tried
WIDTH = 4  # values are exchanged within so many that stand together in the order of frequency


class Toward:
    """Directions of the residual stream whose logits come nearest to a list of wanted ones.

    Least squares over the vocabulary, each token weighted by its share of the scanned text.
    """

    def __init__(self, scan: Scan):
        model = scan.model
        counts = torch.bincount(scan.target, minlength=model.cfg.d_vocab).float() + 0.1
        self.share, self.u = counts / counts.sum(), model.W_U
        spread = (self.u * self.share) @ self.u.T
        self.inverse = torch.linalg.inv(spread + 1e-4 * spread.diagonal().mean() * torch.eye(len(spread)))

    def __call__(self, lift: Float[Tensor, "k vocabulary"]) -> Float[Tensor, "k d_model"]:
        """A direction for each list of logits."""
        return ((lift * self.share) @ self.u.T) @ self.inverse


@dataclasses.dataclass(frozen=True)
class Handmade:
    """Neurons that are their rules: what each rule predicts on average, and what each writes, a row a neuron."""

    rules: list[Rule]
    mean: Float[Tensor, " neuron"]
    rows: Float[Tensor, "neuron d_model"]

    @classmethod
    def of(cls, rules: list[Rule], scan: Scan, coded: Coded, toward: Toward, chunk: int = 128) -> "Handmade":
        """Each writes toward the words that come next where its rule fires, over the height of its firing.

        scan, coded: explore text, and its slots.
        """
        rows, means = [], []
        for start in range(0, len(rules), chunk):
            fires = predictions(rules[start : start + chunk], coded)
            means.append(fires.mean(0))
            fires.sub_(means[-1])
            height = fires.amax(0)
            direction = toward(next_words(fires, scan.target, toward.share))
            rows.append(torch.where(height[:, None] > 1e-6, direction / height.clamp(min=1e-6)[:, None], 0))
        return cls(rules, torch.cat(means), torch.cat(rows))

    def fires(self, coded: Coded, neurons: Int[Tensor, " k"] | None = None) -> Float[Tensor, "n neuron"]:
        """What the rules (all, or some neurons') predict at every position, less their mean on explore text."""
        some = range(len(self.rules)) if neurons is None else neurons.tolist()
        return predictions([self.rules[j] for j in some], coded).sub_(self.mean[list(some)])


def next_words(
    fires: Float[Tensor, "n neuron"], target: Int[Tensor, " n"], share: Float[Tensor, " v"], prior: float = 20.0
) -> Float[Tensor, "neuron v"]:
    """The words that come next where neurons fire (above their mean): the log of a token's share there over its share
    everywhere, shrunk towards 0 by `prior` positions; 0 for tokens that come fewer than five times."""
    weight = fires.clamp(min=0)
    weight = weight / weight.amax(0).clamp(min=1e-9)
    inside = torch.zeros(len(share), weight.shape[1]).index_add_(0, target, weight)
    lift = (inside + prior * share[:, None]) / (weight.sum(0) + prior) / share[:, None]
    often = torch.bincount(target, minlength=len(share)) >= 5
    return torch.where(often[:, None], lift.log(), 0).T


def words_after(scan: Scan, toward: Toward, prior: float = 20.0) -> Float[Tensor, "v d_model"]:
    """No rule at all: for each token the direction toward the words that follow it in a text (0 for tokens that do not
    come there)."""
    vocabulary, table = len(toward.share), torch.zeros(len(toward.share), scan.model.cfg.d_model)
    for part in scan.token.unique().split(256):
        mine = torch.isin(scan.token, part)
        code = torch.searchsorted(part, scan.token[mine]) * vocabulary + scan.target[mine]
        counts = torch.bincount(code, minlength=len(part) * vocabulary).view(len(part), vocabulary).float()
        lift = (counts + prior * toward.share) / (counts.sum(1, keepdim=True) + prior) / toward.share
        table[part] = toward(lift.log())
    return table


def table_by_token(scan: Scan) -> Float[Tensor, "v neuron"]:
    """Each neuron's mean change, from its mean everywhere, given the current token (0 for tokens that do not come)."""
    change = torch.zeros(scan.model.cfg.d_vocab, scan.model.cfg.d_mlp).index_add_(0, scan.token, scan.activations)
    counts = torch.bincount(scan.token, minlength=len(change))[:, None]
    return torch.where(counts > 0, change / counts.clamp(min=1) - scan.means, 0)


def strength(
    model: TransformerBridge,
    base: Float[Tensor, "n d_model"],
    write: Float[Tensor, "n d_model"],
    target: Int[Tensor, " n"],
    multiples: tuple[float, ...] = MULTIPLES,
) -> float:
    """By how much to scale a write to the final streams `base`: the best on this text of some multiples of a closed form.

    One step of Newton's method from strength zero: how much the write raises the token that came, less what the model at
    `base` expects of that, over the variance that it expects; times the final LayerNorm's mean divisor (taken as fixed).
    """
    gained = spread = 0.0
    for logits, said, aim in logits_in_chunks(model, base, write, target):
        chance, lift = logits.softmax(-1), said @ model.W_U
        hoped = (lift * chance).sum(1)
        gained += (lift.gather(1, aim[:, None])[:, 0] - hoped).sum().item()
        spread += ((lift.square() * chance).sum(1) - hoped.square()).sum().item()
    once = gained / max(spread, 1e-9) * layernorm_scale(model, base).mean().item()
    if len(multiples) == 1:
        return once * multiples[0]
    tried = [once * x for x in multiples]
    return min(tried, key=lambda x: residual_losses(model, base + x * write, target).mean().item())


def exchanged(counts: Int[Tensor, " value"], generator: torch.Generator) -> Int[Tensor, " value"]:
    """For every value another one that comes about as often: in the order of frequency, within windows of WIDTH, each
    is moved on by a random step that is not zero (a value that is alone in its window stays)."""
    order, n = counts.argsort(descending=True, stable=True), len(counts)
    step = torch.randint(1, WIDTH, (n // WIDTH + 1,), generator=generator)
    rank = torch.arange(n)
    window = rank // WIDTH
    size = torch.where(window == window[-1], n - window[-1] * WIDTH, WIDTH)
    step = torch.where(size > 1, (step[window] - 1) % (size - 1).clamp(min=1) + 1, 0)
    moved = window * WIDTH + (rank % WIDTH + step) % size
    return torch.empty_like(order).index_put((order,), order[moved])


def about_other_words(rules: list[Rule], coded: Coded, seed: int = 0) -> list[Rule]:
    """The same rules about other values: as many conditions, on values of about the same frequency (states: on other
    states), with the same pushes. The values are drawn anew for every rule.

    coded: slots of explore text, on which the frequencies are taken.
    """
    generator, states = torch.Generator().manual_seed(seed), state_names()
    counts = {name: torch.bincount(inverse, minlength=len(values)) for name, (values, inverse) in coded.items()}
    true = torch.tensor([int((coded[name][0][coded[name][1]] == 1).sum()) for name in states])
    found = []
    for rule in rules:
        other, terms = exchanged(true, generator), []
        for term in rule.terms:
            if term.slot in states:
                terms.append(dataclasses.replace(term, slot=states[other[states.index(term.slot)]]))
            else:
                terms.append(_elsewhere(term, coded[term.slot][0], exchanged(counts[term.slot], generator)))
        found.append(dataclasses.replace(rule, terms=tuple(terms)))
    return found


def _elsewhere(term: Term, values: Int[Tensor, " value"], other: Int[Tensor, " value"]) -> Term:
    """A term with its groups exchanged."""
    place = torch.searchsorted(values, torch.tensor(term.groups)).clamp(max=len(values) - 1)
    return dataclasses.replace(term, groups=tuple(values[other[place]].tolist()))
