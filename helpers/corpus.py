"""Walk stories through a model in one streaming pass, a batch of positions at a time."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.stories import EncodedStory, Story, encode_story

POOL = 64  # stories sorted by length together, so that little of a batch is padding
ACTIVATIONS = (
    "hook_embed",
    "hook_pos_embed",
    "attn.hook_v",
    "attn.hook_pattern",
    "attn.hook_z",
    "hook_resid_mid",
    "mlp.hook_post",
    "hook_mlp_out",
)
Edits = dict[str, Callable[[Tensor], Tensor]]


@dataclasses.dataclass(frozen=True)
class Batch:
    """The scored positions of some stories, flattened: each has a real next token.

    story: number of each position's story in the walk. pos: its place (0 is `<|endoftext|>`). token, target:
    the token that stands there and the one that comes next. row: its row in the padded arrays of `streams`.
    """

    encoded: list[EncodedStory]
    story: Int[Tensor, " n"]
    row: Int[Tensor, " n"]
    pos: Int[Tensor, " n"]
    token: Int[Tensor, " n"]
    target: Int[Tensor, " n"]
    streams: "Streams"

    def flat(self, values: Float[Tensor, "story pos *rest"]) -> Float[Tensor, "n *rest"]:
        """The rows of a padded array at the scored positions."""
        return values[self.row, self.pos]

    def chosen(self, at: Int[Tensor, " k"]) -> "Batch":
        """The batch with some of its scored positions (where each costs much); stories and streams stay."""
        columns = (self.story, self.row, self.pos, self.token, self.target)
        return Batch(self.encoded, *(column[at] for column in columns), self.streams)

    def next_tags(self, kind: str, names: list[str]) -> Int[Tensor, " n"]:
        """Number in `names` of each next token's tag (`universal` or `penn`), or -1."""
        number = {name: i for i, name in enumerate(names)}
        return torch.cat(
            [
                torch.tensor([number.get(tag, -1) for tag in getattr(story, kind)[1:]], dtype=torch.long)
                for story in self.encoded
            ]
        )

    def in_opening(self) -> Int[Tensor, " n"]:
        """1 where the next token belongs to the story's first sentence, else 0."""
        return torch.cat([(story.spans[1:, 0] < opening_end(story.story.text)).long() for story in self.encoded])


@dataclasses.dataclass(frozen=True)
class Streams:
    """What one layer writes into the residual stream (the parts sum to `resid_post`, tested) and its neurons' activations."""

    token_embedding: Float[Tensor, "story pos d_model"]
    position_embedding: Float[Tensor, "story pos d_model"]
    v: Float[Tensor, "story pos head d_head"]
    pattern: Float[Tensor, "story head query key"]
    z: Float[Tensor, "story pos head d_head"]
    resid_mid: Float[Tensor, "story pos d_model"]
    mlp_post: Float[Tensor, "story pos d_mlp"]
    mlp_out: Float[Tensor, "story pos d_model"]

    @property
    def resid_post(self) -> Float[Tensor, "story pos d_model"]:
        """The residual stream before the final LayerNorm."""
        return self.resid_mid + self.mlp_out


def opening_end(text: str) -> int:
    """Number of characters of a text's first sentence (all of it where no sentence ends)."""
    end = re.search(r"[.!?]", text)
    return end.end() if end else len(text)


@torch.inference_mode()
def run_streams(model: TransformerBridge, tokens: Int[Tensor, "story pos"], edits: Edits | None = None) -> Streams:
    """One forward pass of a one-layer model's trunk (no unembedding), its activations kept.

    `edits` maps names of ACTIVATIONS to functions of the activation; what one returns takes its place, for all that
    reads it (a pattern is the exception: TransformerLens discards edits of it).
    """
    found: dict[str, Tensor] = {}

    def keep(value: Tensor, hook) -> Tensor:
        name = hook.name.removeprefix("blocks.0.")
        found[name] = edits[name](value) if edits and name in edits else value
        return found[name]

    names = [name if name in {"hook_embed", "hook_pos_embed"} else f"blocks.0.{name}" for name in ACTIVATIONS]
    with model.hooks(fwd_hooks=[(name, keep) for name in names]):
        model.original_model.transformer(tokens)
    values = [found[name] for name in ACTIVATIONS]
    values[1] = values[1].expand_as(values[0])
    return Streams(*values)


def walk(
    model: TransformerBridge, stories: Iterable[Story], positions: int = 8192, edits: Edits | None = None
) -> Iterator[Batch]:
    """Stream stories through the model in batches of at most about `positions` padded positions.

    Memory does not grow with the number of stories. Stories of a batch need not be neighbours: `Batch.story` numbers
    them. `edits`: as `run_streams` has them.
    """
    numbered = enumerate(stories)
    while pool := list(islice(numbered, POOL)):
        encoded = [(i, encode_story(story, model.tokenizer, model.cfg.n_ctx)) for i, story in pool]
        encoded.sort(key=lambda pair: len(pair[1].tokens))
        part: list[tuple[int, EncodedStory]] = []
        for pair in encoded:
            if part and (len(part) + 1) * len(pair[1].tokens) > positions:
                yield _batch(model, part, edits)
                part = []
            part.append(pair)
        yield _batch(model, part, edits)


def _batch(model: TransformerBridge, part: list[tuple[int, EncodedStory]], edits: Edits | None) -> Batch:
    encoded = [story for _, story in part]
    tokens = torch.nn.utils.rnn.pad_sequence([story.tokens for story in encoded], batch_first=True)
    lengths = [len(story.tokens) - 1 for story in encoded]
    row = torch.repeat_interleave(torch.tensor(lengths))
    story = torch.tensor([i for i, _ in part])[row]
    pos = torch.cat([torch.arange(length) for length in lengths])
    return Batch(
        encoded, story, row, pos, tokens[row, pos], tokens[row, pos + 1], run_streams(model, tokens, edits)
    )
