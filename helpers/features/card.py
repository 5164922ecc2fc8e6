"""Cards of parts: when each fires, what feeds it, what it raises and lowers, and what the model loses without it."""

import dataclasses
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from helpers.core.card import Card
from helpers.core.estimates import Comparison, Estimate, compare, estimate, verdict
from helpers.core.files import WorkbookError
from helpers.core.logits import layernorm_scale, residual_losses
from helpers.core.parts import Parts, costs
from helpers.core.paths import head_writes
from helpers.core.scan import Scan, decoder
from helpers.features.dictionary import load_dictionary
from helpers.features.names import feature_names
from helpers.features.rules import Rule, Variables, find_rules, score
from helpers.heads.changes import hear, placed
from helpers.heads.to_neurons import read_directions

BEFORE, AFTER = 9, 4  # tokens shown of an example's context
BANDS = ((0.6, 0.9), (0.3, 0.6), (0.05, 0.3))  # shares of a part's maximum that examples are drawn from
PLACES = 400  # at which a part's cost is measured, and at which its senders are looked for
LEAST = 0.02  # nats: the smallest difference that would matter


def card(scan: Scan, part: str | Parts, test: Scan | None = None) -> Card:
    """The card of one neuron, head or feature of the model's own dictionary; `test`: unseen stories to score it on.

        card(explore, "feature 64", confirm)

    Raises:
        WorkbookError: there is no such part.
    """
    if isinstance(part, str):
        kind, _, number = part.partition(" ")
        basis = load_dictionary(scan.model) if kind == "feature" else None
        sizes = {"neuron": scan.model.cfg.d_mlp, "head": scan.model.cfg.n_heads, "feature": len(basis or ())}
        if not (number.isdigit() and int(number) < sizes.get(kind, 0)):
            what = f"No part {part!r}"
            raise WorkbookError(f"{what}: say neuron, head or feature and its number, as in 'neuron 12'.")
        means = {"neuron": lambda: scan.means, "head": lambda: scan.z.mean(0)}.get(kind, lambda: None)()
        part = Parts(part, kind, torch.tensor([int(number)]), means=means, basis=basis)
    return cards(scan, part, test)[0]


def show_neuron(scan: Scan, number: int) -> Card:
    """The card of one neuron: `show_neuron(explore, 12)`."""
    return card(scan, f"neuron {number}")


def show_head(scan: Scan, number: int) -> Card:
    """The card of one head: `show_head(explore, 3)`."""
    return card(scan, f"head {number}")


@torch.inference_mode()
def cards(scan: Scan, parts: Parts, test: Scan | None = None, rules: Sequence[Rule] | None = None) -> list[Card]:
    """The cards of some parts of one kind; `rules`: theirs, if they are known (found on `scan`)."""
    told, test, model = "unseen" if test else "these", test or scan, scan.model
    own, unseen = activity(scan, parts), activity(test, parts)
    least = torch.zeros(len(parts)) if parts.kind == "feature" else own.mean(0) + 2 * own.std(0)
    loud, heard, decode = own > least, unseen > least, decoder(model.tokenizer)
    rules = find_rules(Variables(scan), loud) if rules is None else rules
    variables, names = Variables(test), feature_names(parts.basis) if parts.basis else {}
    fed, words = feeders(scan, parts, loud)
    if parts.kind == "head":
        found = [(scan.at(loud[:, k]), j) for k, j in enumerate(parts.index.tolist())]
        gone = [(here, head_writes(model, scan.z.mean(0) - here.z)[:, j]) for here, j in found]
        writes = torch.stack([(here.resid_post - hear(here, change)).mean(0) for here, change in gone])
    else:
        rows = (parts.basis.writes if parts.basis else model.W_out[0])[parts.index]
        writes = rows * ((own * loud).sum(0) / loud.sum(0).clamp(min=1))[:, None]
    says = (writes - writes.mean(1, keepdim=True)) @ model.W_U / layernorm_scale(model, scan.resid_post).mean()
    made = []
    for k, (number, rule) in enumerate(zip(parts.index.tolist(), rules, strict=True)):
        held = score(variables, rule, unseen[:, k], heard[:, k])
        one = dataclasses.replace(parts, index=parts.index[k : k + 1])
        seen = costs(scan, one) if parts.kind == "head" else own[:, k]  # a head's: the next word's loss without it
        sides = [says[k].topk(10, largest=way).indices.tolist() for way in (True, False)]
        up, down = ({decode(i): round(float(says[k, i]), 2) for i in side} for side in sides)
        pair, rest = loses(test, parts, k, heard[:, k])
        total = held.fires * pair.value.mean + (1 - held.fires) * rest.mean if held.fires else 0.0
        disagree = "" if held.named else (
            f"{'Name and rule do not agree' if number in names else 'The rule does not hold'} on {told} stories: "
            f"{held.precision:.0%} of the rule's places fire, and it finds {held.recall:.0%} of those that do."
        )  # fmt: skip
        ends = ((e.mean, e.low, e.high) for e in (pair.value, rest))
        sides = (tuple(round(end, 4) if held.fires else 0.0 for end in side) for side in ends)
        made.append(Card(
            f"{parts.kind} {number}", names.get(number, ""), round(held.fires, 4), rule.short(), round(held.precision, 2),
            round(held.recall, 2), examples(scan, seen), fed[k], words[k], up, down, round(total, 5),
            *sides, verdict(pair.difference, LEAST), disagree, pair,
        ))  # fmt: skip
    return made


def activity(scan: Scan, parts: Parts) -> Float[Tensor, "n k"]:
    """How much each part does at every position: its activation; of a head, how far its write is from its mean."""
    if parts.kind == "head":
        own = (scan.z - scan.z.mean(0))[:, parts.index]
        return torch.einsum("nhd,hdm->nhm", own, scan.model.W_O[0][parts.index]).norm(dim=-1)
    if not parts.basis:
        return scan.activations[:, parts.index]
    return parts.basis.activations(scan, parts.index)


def examples(
    scan: Scan, values: Float[Tensor, " n"], strongest: int = 3, drawn: int = 1, seed: int = 0
) -> list[tuple[list[str], list[float], int]]:
    """Where a part is loudest, once a story, and then `drawn` positions of each of BANDS, from loud to quiet: the tokens
    around, the part's activation at each, and which of them is meant."""
    rows, told = [], set()
    for i in values.topk(min(500, len(values))).indices.tolist():
        if int(scan.story[i]) not in told and len(rows) < strongest:
            told.add(int(scan.story[i]))
            rows.append(i)
    generator = torch.Generator().manual_seed(seed)
    for low, high in BANDS:
        inside = ((values > low * values.max()) & (values <= high * values.max())).nonzero()[:, 0]
        some = inside[torch.randperm(len(inside), generator=generator)[:drawn]]
        rows += some[values[some].argsort(descending=True)].tolist()
    shown, decode = [], lambda t: scan.model.tokenizer.decode([t]).replace("\n", "⏎")
    for i in (i for i in rows if values[i] > 0):
        inside = (scan.story == scan.story[i]).nonzero()[:, 0]
        first, last = max(int(inside[0]), i - BEFORE), min(int(inside[-1]), i + AFTER - 1)
        tokens = scan.token[first : i + 1].tolist() + scan.target[i : last + 1].tolist()
        size = [*values[first : last + 1].tolist(), 0.0][: len(tokens)]
        shown.append(([decode(t) for t in tokens], [round(v, 1) for v in size], i - first))
    return shown


def feeders(
    scan: Scan, parts: Parts, loud: Bool[Tensor, "n k"]
) -> tuple[list[dict[str, float]], list[dict[str, list[str]]]]:
    """What lifts each part's input where it fires above its mean: shares by token, place and head; and, for each head,
    the words whose message does most of it. Of a head only the words that it looks at there."""
    model, places = scan.model, torch.zeros_like(loud)
    for k in range(len(parts)):
        here = loud[:, k].nonzero()[:, 0]
        places[here[torch.linspace(0, max(0, len(here) - 1), min(len(here), PLACES)).long()], k] = True
    heads, fed, fired = parts.kind == "head", [{}] * len(parts), loud.any(0).tolist()
    if heads:
        reading = torch.eye(model.cfg.n_heads)[:, None, parts.index]  # a head's own pattern alone
    else:
        read = read_directions(model, parts.index) if not parts.basis else parts.basis.W_enc[:, parts.index]
        read = read - read.mean(0)
        reading, scale = model.W_O[0] @ read, layernorm_scale(model, scan.resid_mid)
        given = {
            "the word": lambda: (model.W_E @ read)[scan.token],
            "its place": lambda: (model.W_pos @ read)[scan.pos],
        }
        given |= {f"head {h}": lambda h=h: scan.z[:, h] @ reading[h] for h in range(model.cfg.n_heads)}
        count, lift = loud.sum(0).clamp(min=1), {}
        for who, column in given.items():  # one at a time: each is as large as the scan
            pull = column() / scale
            lift[who] = (pull * loud).sum(0) / count - pull.mean(0)
        total = sum(lift.values())
        fed = [{who: round(float(rise[k] / total[k]), 3) for who, rise in lift.items() if fired[k]}
               for k in range(len(parts))]  # fmt: skip
    sums = torch.zeros(model.cfg.d_vocab, model.cfg.n_heads, len(parts))
    for batch, numbers in placed(scan, places.any(1)):
        tokens = pad_sequence([story.tokens for story in batch.encoded], batch_first=True)
        values = torch.ones_like(batch.streams.v[..., :1]) if heads else batch.streams.v
        values = torch.einsum("skhd,hdj->skhj", values, reading)
        values = values if heads else values - values.mean((0, 1))
        chosen = torch.zeros(*tokens.shape, len(parts))
        chosen[batch.row, batch.pos] = places[numbers[batch.chosen]].float()
        sent = torch.einsum("shqk,sqj->skhj", batch.streams.pattern, chosen).mul_(values)
        sums.index_add_(0, tokens.flatten(), sent.flatten(0, 1))
    decode = lambda t: scan.model.tokenizer.decode([t]).strip() or "⏎"  # noqa: E731
    top = [{f"head {h}": list(dict.fromkeys(map(decode, sums[:, h, k].topk(4).indices.tolist())))
            for h in range(model.cfg.n_heads) if (h == parts[k] if heads else fed[k].get(f"head {h}", 0) >= 0.05)}
           for k in range(len(parts))]  # fmt: skip
    return fed, top


def loses(scan: Scan, parts: Parts, k: int, fires: Bool[Tensor, " n"]) -> tuple[Comparison, Estimate]:
    """What the model loses without a part where it fires (nats), beside the loss when the write of another part of its
    kind, made as strong, is taken away in its place; and what it loses without it elsewhere.

    Features are set to zero, which they mostly are; neurons and heads to their means.
    """
    draw, sides = torch.Generator().manual_seed(0), []

    def taken(here: Scan, gone: Tensor) -> Float[Tensor, " n"]:
        if not gone.any():  # a feature is 0 where it is silent
            return torch.zeros(len(here))
        final = hear(here, gone) if parts.kind == "head" else here.resid_post + gone
        return residual_losses(scan.model, final, here.target) - here.losses

    for where in (fires, ~fires):
        chosen = where.nonzero()[:, 0]
        here = scan.at(chosen[torch.randperm(len(chosen), generator=draw)[:PLACES]].sort().values)
        if parts.kind == "head":
            change = (parts.means - here.z) if parts.means is not None else scan.z.mean(0) - here.z
            every = head_writes(scan.model, change)
            own, other = every[:, parts[k]], every[:, (parts[k] + 1) % scan.model.cfg.n_heads]
            other = other * own.norm(dim=1, keepdim=True) / other.norm(dim=1, keepdim=True).clamp(min=1e-9)
        else:
            basis, writes = parts.basis, parts.basis.writes if parts.basis else scan.model.W_out[0]
            own = basis.activations(here, parts.index[[k]])[:, 0] if basis else here.activations[:, parts[k]]
            usual = scan.means if parts.means is None and parts.kind == "neuron" else parts.means
            change = (0 if parts.kind == "feature" else usual[parts[k]]) - own
            own, other = writes[parts[k]], writes[(parts[k] + len(writes) // 2) % len(writes)]
            own, other = (
                change[:, None] * row for row in (own, other / other.norm().clamp(min=1e-9) * own.norm())
            )
        sides.append(([taken(here, own)] + [taken(here, other)] * (where is fires), here.story))
    (lost, story), (rest, others) = sides
    return compare(lost[0], {"as strong a write of another part": lost[1]}, story), estimate(rest[0], others)
