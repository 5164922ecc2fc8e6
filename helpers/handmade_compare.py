"""Handmade components beside the ones they replace, and what proposed rules name."""

import dataclasses

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.corpus import run_streams
from helpers.estimates import Estimate, bootstrap
from helpers.findings import Finding
from helpers.handmade_reads import Installed, read_input
from helpers.library import Entry, Evidence
from helpers.predicates import LEVELS, WordGroups, group_slot
from helpers.rules import Rule
from helpers.writes import logit_writes


def correlation(a: Float[Tensor, "n k"], b: Float[Tensor, "n k"]) -> Float[Tensor, " k"]:
    """Pearson correlation of matching columns; 0 where one is constant."""
    a, b = a - a.mean(0), b - b.mean(0)
    size = a.norm(dim=0) * b.norm(dim=0)
    return torch.where(size > 1e-9, (a * b).sum(0) / size.clamp(min=1e-9), 0)


@torch.no_grad()
def on_stimuli(
    model: TransformerBridge, hand: Installed, tokens: Int[Tensor, " k"], chunk: int = 512
) -> tuple[Float[Tensor, "k neuron"], Float[Tensor, "k neuron"]]:
    """Synthetic stimuli: a story that is one token long. The model's neurons on that token, and the handmade ones."""
    own, made = [], []
    for part in tokens.split(chunk):
        rows = torch.stack([torch.full_like(part, model.tokenizer.bos_token_id), part], 1)
        streams = run_streams(model, rows)
        own.append(streams.mlp_post[:, 1])
        made.append(activations(hand, read_input(model, streams.resid_mid[:, 1])))
    return torch.cat(own), torch.cat(made)


def activations(hand: Installed, inputs: Float[Tensor, "n d_model"]) -> Float[Tensor, "n neuron"]:
    """Activations of handmade neurons on what the MLP reads."""
    return torch.nn.functional.gelu(inputs @ hand.w_in + hand.b_in, approximate="tanh")


def write_agreement(
    model: TransformerBridge, rows: Float[Tensor, "neuron d_model"], known: Bool[Tensor, " v"], top: int = 10
) -> tuple[Float[Tensor, " neuron"], Float[Tensor, " neuron"]]:
    """Correlation over known tokens between what a neuron and its handmade copy promote, and the share of the `top`
    most promoted that both have."""
    agree, common = [], []
    for neurons in torch.arange(len(rows)).split(256):
        own = logit_writes(model, neurons)[:, known]
        made = (rows[neurons] @ model.W_U)[:, known]
        agree.append(correlation(own.T, made.T))
        first, second = (x.topk(min(top, x.shape[1])).indices for x in (own, made))
        common.append((first[:, :, None] == second[:, None]).any(2).float().mean(1))
    return torch.cat(agree), torch.cat(common)


def cosine(a: Float[Tensor, "k d"], b: Float[Tensor, "k d"]) -> Float[Tensor, " k"]:
    """Cosine of matching rows, each less its mean (no LayerNorm passes that on)."""
    return correlation(a.T, b.T)


def share_of(story: Int[Tensor, " n"], part: Float[Tensor, " n"], total: Float[Tensor, " n"]) -> Estimate:
    """Sum of one column over the sum of another, resampling stories."""
    width = int(story.max()) + 1
    return bootstrap(*(torch.zeros(width).double().index_add_(0, story, x.double()) for x in (part, total)))


def story_mean(story: Int[Tensor, " n"], values: Float[Tensor, " n"]) -> Estimate:
    """Mean over positions, with an interval over stories."""
    return share_of(story, values, torch.ones(len(story)))


def recovered(
    story: Int[Tensor, " n"], loss: Float[Tensor, " n"], floor: Float[Tensor, " n"], whole: Float[Tensor, " n"]
) -> Estimate:
    """Share of what the floor loses against the whole model that a replacement recovers, resampling stories."""
    return share_of(story, floor - loss, floor - whole)


def nearer(old: Float[Tensor, " n"], new: Float[Tensor, " n"], whole: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """By how much a position's loss comes nearer to the whole model's; below 0 where it goes away from it."""
    return (old - whole).abs() - (new - whole).abs()


def recovered_table(
    loss: dict[str, Float[Tensor, " n"]], share: dict[str, Estimate], above: dict[str, Estimate]
) -> str:
    """Replacements of the MLP as a Markdown table, the worst first."""
    head = "| in place of the MLP | loss | of mean ablation's cost recovered | of what the table leaves |"
    rows = [
        f"| {name} | {values.mean():.2f} | {share[name].mean:.0%} ({share[name].low:.0%} to {share[name].high:.0%}) "
        f"| {above[name].mean:.0%} ({above[name].low:.0%} to {above[name].high:.0%}) |"
        for name, values in sorted(loss.items(), key=lambda item: -item[1].mean())
    ]
    return "\n".join([head, "|---|---|---|---|", *rows])


def copies(model: TransformerBridge, head: int, by_word: Float[Tensor, " v"], words: int = 30) -> float:
    """Share of the words that a head attends to most (over what their distance says) whose own logit its value and
    output weights raise most of all logits."""
    tokens = by_word.topk(words).indices
    moved = model.W_E[tokens] @ model.W_V[0, head] @ model.W_O[0, head]
    logits = (moved - moved.mean(-1, keepdim=True)) @ model.W_U
    return (logits.argmax(-1) == tokens).float().mean().item()


def named_words(rules: list[Rule], slot: str, groups: WordGroups) -> list[set[int]]:
    """The words, as numbers of their spelling, that each rule lists as raising the neuron at a word slot."""
    spelled, found = group_slot(slot, LEVELS[0]), []
    for rule in rules:
        raised = {name: set() for name in (slot, spelled)}
        for term in rule.terms:
            if term.slot in raised:
                raised[term.slot] = {g for g, x in zip(term.groups, term.amounts, strict=True) if x > 0 and g >= 0}
        found.append(raised[spelled] | {int(groups.of[0, token]) for token in raised[slot]})
    return found


def lists_word(rule: Rule, slot: str, token: int, groups: WordGroups) -> bool:
    """Whether a rule is raised by a token at a word slot, by itself or in a group of like words."""
    numbers = dict(zip((group_slot(slot, level) for level in LEVELS), groups.of[:, token].tolist(), strict=True))
    numbers[slot] = token
    return any(
        amount > 0 and group == numbers.get(term.slot)
        for term in rule.terms
        for group, amount in zip(term.groups, term.amounts, strict=True)
    )


def with_surgery(entry: Entry, proof: Finding) -> Entry:
    """A library entry with what surgery showed of it, in place of what an earlier run showed."""
    older = [evidence for evidence in entry.evidence if not evidence.metric.startswith("Surgery")]
    return dataclasses.replace(entry, evidence=[*older, Evidence.of(proof)])
