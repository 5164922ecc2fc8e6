"""The measurements of the model tour: columns of numbers, one a scored position, made batch by batch."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.baselines import ORDERS, has_ngram_losses, ngram_losses
from helpers.core.files import WorkbookError
from helpers.core.logits import layernorm_scale, path_logits, residual_losses, target_logits
from helpers.core.paths import (
    POSITION_EDGES,
    POSITIONS,
    ablated_losses,
    bin_names,
    block_attention,
    head_writes,
    mlp_write,
    paths,
)
from helpers.core.scan import Scan
from helpers.core.stories import CLASSES as UNIVERSAL
from helpers.core.stories import Story, check_tagged

Columns = dict[str, Float[Tensor, " n"]]
DISTANCE_EDGES = [0, 1, 2, 3, 5, 9, 17, 33]  # tokens back; the last bin is open
DISTANCES = [*bin_names(DISTANCE_EDGES, f"{DISTANCE_EDGES[-1]} and more"), "first position"]


GROUPINGS = {"class": UNIVERSAL, "position": POSITIONS, "part": ["rest", "opening"], "names": ["new", "seen"]}


def groups(batch: Scan) -> dict[str, Int[Tensor, " n"]]:
    """Each position's groups: class of the next token, its place in the story, opening sentence or rest, and for
    names whether the next token has been in the story before."""
    place = torch.bucketize(batch.pos + 1, torch.tensor(POSITION_EDGES), right=True) - 1
    place = torch.where(place < len(POSITIONS), place, -1)
    classes = batch.next_tags("universal", UNIVERSAL)
    known = torch.cat([_seen_before(story.tokens) for story in batch.encoded])
    names = torch.where(classes == UNIVERSAL.index("PROPN"), known, -1)
    return {"class": classes, "position": place, "part": batch.in_opening(), "names": names}


def _seen_before(tokens: Int[Tensor, " pos"]) -> Int[Tensor, " pos_minus_one"]:
    """1 where a token after the first has stood earlier in the story, else 0."""
    return (tokens[1:, None] == tokens).tril(0).any(1).long()


def baseline_columns(batch: Scan) -> Columns:
    """The n-gram losses of each next token; not there when a story of the batch has none stored."""
    stored = [ngram_losses(encoded) for encoded in batch.encoded]
    if any(losses is None for losses in stored):
        return {}
    return dict(zip(ORDERS, torch.cat(stored, dim=1), strict=True))


def check_stories(stories: list[Story]) -> list[Story]:
    """The stories, if the tour can be made on them.

    Raises:
        WorkbookError: there are none, some are untagged, or some have no stored n-gram losses.
    """
    if not stories:
        raise WorkbookError("No story is left in this half: give more stories, or unset TINYSTORIES_STORIES.")
    for story in stories:
        check_tagged(story)
    if not all(has_ngram_losses(story.text) for story in stories):
        raise WorkbookError(
            "The stories have no stored n-gram losses, which this notebook compares with: unset TINYSTORIES_STORIES, "
            "or count the n-grams and store the losses of your stories with helpers.build.ngrams."
        )
    return stories


def ablation_columns(model: TransformerBridge, batch: Scan, means: dict[str, Tensor]) -> Columns:
    """Losses in nats, whole and with a part mean-ablated ("mean MLP") or zero-ablated ("zero MLP")."""
    columns = {f"mean {name}": loss for name, loss in ablated_losses(model, batch, means).items()}
    columns["loss"] = columns.pop("mean none")
    return columns | {
        f"zero {name}": loss for name, loss in ablated_losses(model, batch, None).items() if name != "none"
    }


def attribution_columns(model: TransformerBridge, batch: Scan, means: dict[str, Tensor]) -> Columns:
    """Direct logit attribution of each path to the next token ("next MLP") and to the current one ("current MLP").

    "size MLP" is the absolute value of the first; "size bias" that of the unembedding's bias b_U.

    "current token without MLP" is the token path's vote for the current token at the final LayerNorm's scale with
    the MLP mean-ablated; "expected MLP" is what the MLP's mean write would give the current token: its vote at any other position.
    """
    scale = layernorm_scale(model, batch.flat(batch.streams.resid_post))
    columns = {}
    for name, write in paths(model, batch.streams).items():
        for aim, token in {"next": batch.target, "current": batch.token}.items():
            columns[f"{aim} {name}"] = target_logits(model, batch.flat(write), scale, token)
        columns[f"size {name}"] = columns[f"next {name}"].abs()
    without = layernorm_scale(model, batch.flat(batch.streams.resid_mid) + means["MLP"])
    columns["current token without MLP"] = target_logits(
        model, batch.flat(batch.streams.token_embedding), without, batch.token
    )
    columns["size bias"] = model.b_U[batch.target].abs()
    columns["expected MLP"] = target_logits(model, means["MLP"].expand(len(scale), -1), scale, batch.token)
    return columns


def direct_columns(model: TransformerBridge, batch: Scan, means: dict[str, Tensor], chunk: int = 1024) -> Columns:
    """What the direct path and a lookup of the current token do.

    "direct repeats": 1 where the embedding's own top prediction is the token it embeds. "repeat without MLP": the
    probability of the current token with the MLP mean-ablated. "lookup MLP": loss with the MLP's write replaced by
    what it would write at the average of every other path, given the current token alone; "shuffled lookup MLP":
    the same with the lookups of other positions, dealt at random.
    """
    flat, streams = batch.flat, batch.streams
    embedding = flat(streams.token_embedding)
    top = [path_logits(model, part, layernorm_scale(model, part)).argmax(-1) for part in embedding.split(chunk)]
    without = flat(streams.resid_mid) + means["MLP"]
    repeat = -residual_losses(model, without, batch.token)
    context = sum(mean for name, mean in means.items() if name not in {"token", "MLP"})
    lookup = mlp_write(model, embedding + context)
    shuffled = lookup[torch.randperm(len(lookup), generator=torch.Generator().manual_seed(0))]
    repeats = (torch.cat(top) == batch.token).float()
    columns = {"direct repeats": repeats, "repeat without MLP": repeat.exp()}
    muted = means["token"] - embedding
    columns["direct token muted"] = residual_losses(model, flat(streams.resid_post) + muted, batch.target)
    columns["no MLP, direct token muted"] = residual_losses(model, without + muted, batch.target)
    for name, write in {"lookup MLP": lookup, "shuffled lookup MLP": shuffled}.items():
        columns[name] = residual_losses(model, flat(streams.resid_mid) + write, batch.target)
    return columns


def route_columns(model: TransformerBridge, batch: Scan, means: dict[str, Tensor]) -> Columns:
    """Loss with all heads mean-ablated in only one of the places that read them: the MLP, or the logits directly."""
    flat, streams = batch.flat, batch.streams
    heads = head_writes(model, flat(streams.z)).sum(-2)
    change = sum(mean for name, mean in means.items() if name.startswith("head ")) - heads
    mid, post = flat(streams.resid_mid), flat(streams.resid_post)
    deaf = mid + mlp_write(model, mid + change)
    return {
        "heads muted for the MLP": residual_losses(model, deaf, batch.target),
        "heads muted for the logits": residual_losses(model, post + change, batch.target),
    }


def blocking_columns(model: TransformerBridge, batch: Scan) -> Columns:
    """Loss with the attention to `<|endoftext|>` blocked ("first blocked") or that to the token before ("previous blocked")."""
    streams, place = batch.streams, torch.arange(batch.streams.pattern.shape[-1])
    blocked = {"first": (place == 0).expand(len(place), -1), "previous": place[:, None] - place == 1}
    columns = {}
    for name, mask in blocked.items():
        change = head_writes(model, block_attention(streams, mask) - streams.z).sum(-2)
        mid = batch.flat(streams.resid_mid + change)
        columns[f"{name} blocked"] = residual_losses(model, mid + mlp_write(model, mid), batch.target)
    return columns


def distance_columns(batch: Scan) -> Columns:
    """Attention of each head by distance ("head 0 at 1" is the share on the token before), `<|endoftext|>` apart."""
    pattern = batch.streams.pattern
    length = pattern.shape[-1]
    back = torch.arange(length)[:, None] - torch.arange(length)
    number = torch.bucketize(back, torch.tensor(DISTANCE_EDGES), right=True) - 1
    number = torch.where(torch.arange(length) == 0, len(DISTANCES) - 1, number)
    kinds = torch.stack([(number == i) & (back >= 0) for i in range(len(DISTANCES))], -1).float()
    shares = batch.flat(torch.einsum("shqk,qkd->sqhd", pattern, kinds))
    return {
        f"head {h} at {name}": shares[:, h, d] for h in range(pattern.shape[1]) for d, name in enumerate(DISTANCES)
    }


def columns(model: TransformerBridge, batch: Scan, means: dict[str, Tensor]) -> Columns:
    """All of the above for one batch."""
    return (
        baseline_columns(batch) | ablation_columns(model, batch, means) | attribution_columns(model, batch, means)
        | direct_columns(model, batch, means) | route_columns(model, batch, means)
        | blocking_columns(model, batch) | distance_columns(batch)
    )  # fmt: skip
