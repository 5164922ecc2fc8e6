"""What heads bring, changed, and who hears the change.

A change is a tensor [position head d_model]: what is added to each head's write. It comes from hiding some earlier
words, from exchanging words in the text, or from another pattern. `hear` runs the rest of the model on it: for all
that reads the stream, for the MLP alone, or for a few neurons. (TransformerLens discards edits of a pattern, so the
head is given the output that it would have had.)
"""

import dataclasses
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.logits import layernorm_scale, residual_losses
from helpers.core.parts import Where, at_positions
from helpers.core.paths import head_writes, mlp_write
from helpers.core.scan import Scan, batches, finish, run_streams
from helpers.core.words import Words

# a mask [position], or [story query key] where each position has its own
Sources = Words | Callable[[Scan], Tensor]
Change = Float[Tensor, "n head d_model"]


def placed(scan: Scan, where: Where = None) -> Iterator[tuple[Scan, Int[Tensor, " whole"]]]:
    """A scan's stories with positions asked for (if none has, the first one), streamed again in its order, each batch cut to
    these positions, with the numbers in the scan of all positions of the batch's stories."""
    wanted, chosen = torch.zeros(len(scan.whole or scan), dtype=torch.bool), at_positions(scan, where)
    wanted[chosen if scan.whole is None else scan.chosen[chosen]] = True
    sizes = torch.tensor([len(story.tokens) - 1 for story in scan.encoded])
    first, asked = sizes.cumsum(0) - sizes, [bool(part.any()) for part in wanted.split(sizes.tolist())]
    asked[0] |= not any(asked)
    kept = [(batch, None) for batch in (scan.whole or scan).kept]
    for batch, tokens in kept or batches(scan.model, scan.encoded, asked=asked):
        numbers, streams = first[batch.story] + batch.pos, batch.streams or run_streams(scan.model, tokens)
        yield dataclasses.replace(batch, streams=streams).at(wanted[numbers]), numbers


@torch.inference_mode()
def stream(
    scan: Scan, measure: Callable[[Scan], dict[str, Float[Tensor, "n *rest"]]], where: Where = None
) -> dict[str, Float[Tensor, "n *rest"]]:
    """Columns measured batch by batch at the positions asked for, one row a position of `scan.at(where)`.

    def measure(batch):
        change = hidden(batch, tagged("PROPN"), explore.z.mean(0))
        return {f"head {h}": loss(batch, hear(batch, change[:, h])) for h in range(8)}

    stream(confirm, measure, where=tagged("PROPN").comes_next)
    """
    columns: dict[str, list[Tensor]] = {}
    for batch, _ in placed(scan, where):
        for name, values in measure(batch).items():
            columns.setdefault(name, []).append(values)
    return {name: torch.cat(parts) for name, parts in columns.items()}


def source_mask(batch: Scan, sources: Sources) -> Bool[Tensor, "story query key"]:
    """Which positions (equal or earlier) are meant at each position of a batch's stories, padded like its patterns."""
    size, whole = batch.streams.pattern.shape[-1], batch.whole or batch
    marked = sources.here(whole) if isinstance(sources, Words) else sources(whole)
    if marked.dim() == 1:
        keys = torch.zeros(len(batch.encoded), 1, size, dtype=torch.bool)
        keys[whole.row, 0, whole.pos] = marked
        marked = keys
    return marked & torch.ones(size, size, dtype=torch.bool).tril()


def elsewhere(batch: Scan, sources: Sources, head: int) -> Bool[Tensor, "story query key"]:
    """As many other earlier positions as are meant at each position: those that a head looks at most (not the start)."""
    mask = source_mask(batch, sources)
    free = ~mask & torch.ones(mask.shape[1:], dtype=torch.bool).tril(-1)
    free[..., 0] = False
    looked = batch.streams.pattern[:, head].masked_fill(~free, -1.0)
    return free & (looked.argsort(-1, descending=True).argsort(-1) < mask.sum(-1, keepdim=True))


def hidden(batch: Scan, sources: Sources, means: Float[Tensor, "head d_head"]) -> Change:
    """The change when what each head fetches from some words is replaced by as much of what it fetches on average."""
    moved = batch.streams.pattern * source_mask(batch, sources)[:, None]
    fetched = pattern_outputs(moved, batch.streams.v)
    return head_writes(
        batch.model, batch.flat(moved.sum(-1).transpose(1, 2)[..., None]) * means - batch.flat(fetched)
    )


def exchanged(batch: Scan, swap: Int[Tensor, " vocabulary"]) -> Change:
    """The change when tokens are exchanged everywhere in the text (`swap[token]` stands in a token's place)."""
    rows, at = torch.cat([batch.row.new_zeros(1), batch.row]).unique(return_inverse=True)
    tokens = pad_sequence([batch.encoded[row].tokens for row in rows], batch_first=True)
    other = run_streams(batch.model, swap[tokens])  # of the stories that are asked about
    return head_writes(batch.model, other.z[at[1:], batch.pos] - batch.z)


def relooked(batch: Scan, pattern: Float[Tensor, "story head query key"]) -> Change:
    """The change when the heads look where another pattern says."""
    return head_writes(batch.model, batch.flat(pattern_outputs(pattern, batch.streams.v)) - batch.z)


def pattern_outputs(
    pattern: Float[Tensor, "story head query key"], v: Float[Tensor, "story key head d_head"]
) -> Float[Tensor, "story query head d_head"]:
    """Head outputs z under a given pattern."""
    return torch.einsum("shqk,skhd->sqhd", pattern, v)


def swaps(model: TransformerBridge, pairs: dict[str, str]) -> Int[Tensor, " vocabulary"]:
    """For each token the one that stands for it when words change places, with and without a blank before them; pairs
    that are not one token each stay as they are."""
    swap = torch.arange(model.cfg.d_vocab)
    for one, other in pairs.items():
        for blank in ("", " "):
            a, b = (model.tokenizer(blank + word, add_special_tokens=False)["input_ids"] for word in (one, other))
            if len(a) == len(b) == 1:
                swap[a[0]], swap[b[0]] = b[0], a[0]
    return swap


def activations_at(
    model: TransformerBridge, mid: Float[Tensor, "n d_model"], neurons: Int[Tensor, " k"]
) -> Float[Tensor, "n k"]:
    """What neurons do when the MLP reads some residual streams."""
    read = model.W_in[0][:, neurons]
    pre = mid / layernorm_scale(model, mid) @ (read - read.mean(0)) + model.b_in[0][neurons]
    return model.blocks[0].mlp.original_component.act(pre)


def hear(
    batch: Scan,
    change: Float[Tensor, "n d_model"],
    neurons: Int[Tensor, " k"] | None = None,
    straight: bool | None = None,
) -> Float[Tensor, "n d_model"]:
    """The residual stream after the layer when a change in the heads' writes is heard by some readers.

    neurons: those that hear it (None: all). straight: whether the logits hear it too, without the MLP (by default
    they do if all neurons do).
    """
    model, mid = batch.model, batch.resid_mid
    straight = neurons is None if straight is None else straight
    if neurons is None:
        final = mid + mlp_write(model, mid + change)
    elif len(neurons):
        gain = activations_at(model, mid + change, neurons) - activations_at(model, mid, neurons)
        final = batch.resid_post + gain @ model.W_out[0][neurons]
    else:
        final = batch.resid_post
    return final + change if straight else final


def loss(batch: Scan, final: Float[Tensor, "n d_model"]) -> Float[Tensor, " n"]:
    """Next-token loss of residual streams after a batch's layer, nats."""
    return residual_losses(batch.model, finish(batch, final), batch.target)


def log_odds(
    batch: Scan, final: Float[Tensor, "n d_model"], one: Int[Tensor, " n"], other: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """How far one token is ahead of another at each position, nats."""
    model, final = batch.model, finish(batch, final)
    centred = final - final.mean(-1, keepdim=True)
    ahead = (centred * (model.W_U.T[one] - model.W_U.T[other])).sum(-1) / layernorm_scale(model, final)[:, 0]
    return ahead + model.b_U[one] - model.b_U[other]
