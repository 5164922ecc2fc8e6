"""Walk stories through a model in one streaming pass, a batch of positions at a time."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.contexts import Contexts, contexts
from helpers.core.files import WorkbookError
from helpers.core.logits import residual_losses
from helpers.core.model import Layer
from helpers.core.stories import EncodedStory, Story, encode_story

POOL = 64  # stories sorted by length together, so that little of a batch is padding
ACTIVATIONS = ("hook_embed", "hook_pos_embed", "attn.hook_v", "attn.hook_pattern", "attn.hook_z", "hook_resid_mid",
               "mlp.hook_post", "hook_mlp_out")  # fmt: skip
Edits = dict[str, Callable[[Tensor], Tensor]]


@dataclasses.dataclass(frozen=True)
class Streams:
    """What one layer writes into the residual stream (in a model of one, the parts sum to `resid_post`, tested) and its
    neurons' activations; `final` is the stream after the last layer."""

    token_embedding: Float[Tensor, "story pos d_model"]
    position_embedding: Float[Tensor, "story pos d_model"]
    v: Float[Tensor, "story pos head d_head"]
    pattern: Float[Tensor, "story head query key"]
    z: Float[Tensor, "story pos head d_head"]
    resid_mid: Float[Tensor, "story pos d_model"]
    mlp_post: Float[Tensor, "story pos d_mlp"]
    mlp_out: Float[Tensor, "story pos d_model"]
    final: Float[Tensor, "story pos d_model"]

    @property
    def resid_post(self) -> Float[Tensor, "story pos d_model"]:
        """The residual stream after the layer."""
        return self.resid_mid + self.mlp_out


@dataclasses.dataclass(frozen=True)
class Scan:
    """The scored positions of some stories, flattened (each has a real next token), and what the model does there.

    story: number of each position's story in the walk. pos: its place (0 is `<|endoftext|>`). token, target: the
    token that stands there and the one that comes next. Every other column is made when it is first asked for.

    A scan is one batch of a stream (`walk`), with everything that the layer computed in `streams`, padded, and `row`
    the row of each position there; or all positions of a split, held (`scan`), without `streams`.
    """

    model: TransformerBridge = dataclasses.field(repr=False)
    encoded: list[EncodedStory] = dataclasses.field(repr=False)
    story: Int[Tensor, " n"]
    pos: Int[Tensor, " n"]
    token: Int[Tensor, " n"]
    target: Int[Tensor, " n"]
    row: Int[Tensor, " n"] | None = None
    streams: Streams | None = dataclasses.field(default=None, repr=False)
    held: dict[str, Tensor] = dataclasses.field(default_factory=dict, repr=False)
    whole: "Scan | None" = dataclasses.field(default=None, repr=False)  # where `at` took this scan from
    chosen: Int[Tensor, " n"] | None = dataclasses.field(default=None, repr=False)  # which of its positions
    kept: list["Scan"] = dataclasses.field(default_factory=list, repr=False)  # its batches, for `walk`

    def __len__(self) -> int:
        return len(self.target)

    def flat(self, values: Float[Tensor, "story pos *rest"]) -> Float[Tensor, "n *rest"]:
        """The rows of a padded array at the scored positions."""
        return values[self.row, self.pos]

    def column(self, name: str) -> Tensor:
        """A held column (in half precision, where memory is short), or the same of `streams`."""
        if name in self.held:
            return self.held[name].float()
        if self.streams is None:
            raise WorkbookError(f"This scan does not hold {name}: scan(model, stories, hold=[..., {name!r}]).")
        return self.flat(getattr(self.streams, name))

    @property
    def resid_mid(self) -> Float[Tensor, "n d_model"]:
        """The residual stream that the MLP reads."""
        return self.column("resid_mid")

    @property
    def activations(self) -> Float[Tensor, "n neuron"]:
        """Every neuron's activation."""
        return self.column("mlp_post")

    @property
    def z(self) -> Float[Tensor, "n head d_head"]:
        """Every head's output before W_O."""
        return self.column("z")

    @functools.cached_property
    def resid_post(self) -> Float[Tensor, "n d_model"]:
        """The residual stream after the layer: in a model of one, before the final LayerNorm."""
        if self.streams is None:
            return self.resid_mid + self.activations @ self.model.W_out[0] + self.model.b_out[0]
        return self.resid_mid + self.column("mlp_out")

    @property
    def above(self) -> list:
        """The blocks above the layer; none in a model of one."""
        return self.model.above if isinstance(self.model, Layer) else []

    @functools.cached_property
    def losses(self) -> Float[Tensor, " n"]:
        """Loss of each next token, nats."""
        return residual_losses(self.model, self.column("final") if self.above else self.resid_post, self.target)

    @functools.cached_property
    def means(self) -> Float[Tensor, " neuron"]:
        """Mean activation of every neuron: what mean ablation puts in its place."""
        return self.activations.mean(0)

    @functools.cached_property
    def deviations(self) -> Float[Tensor, " neuron"]:
        """Standard deviation of every neuron's activation."""
        squares = sum((part - self.means).square().sum(0) for part in self.activations.split(2048))
        return (squares / max(1, len(self) - 1)).sqrt()

    @functools.cached_property
    def context(self) -> Contexts:
        """The readable variables of each position.

        Raises:
            WorkbookError: a story has no tags.
        """
        if self.whole is not None:
            return self.whole.context.at(self.chosen)
        return contexts(self.encoded, list(dict.fromkeys(self.story.tolist())))

    def at(self, where: Int[Tensor, " k"] | Bool[Tensor, " n"]) -> "Scan":
        """The scan at some of its positions only; its stories stay."""
        index = (where.nonzero()[:, 0] if where.dtype == torch.bool else where).cpu()  # contexts stay there
        cut = {name: column[index] for name, column in self.held.items()}
        columns = (self.story, self.pos, self.token, self.target)
        row = None if self.row is None else self.row[index]
        before = index if self.whole is None else self.chosen[index]
        whole = self.whole or self
        some = Scan(self.model, self.encoded, *(c[index] for c in columns), row, self.streams, cut, whole, before)
        if "losses" in self.__dict__:  # measured already
            some.__dict__["losses"] = self.losses[index]
        return some

    def walk(self, positions: int = 2048, edits: Edits | None = None) -> Iterator["Scan"]:
        """Stream the same stories through the model again, for what is not held (or give the batches that are kept)."""
        yield from walk(self.model, self.encoded, positions, edits) if edits or not self.kept else self.kept

    def next_tags(self, kind: str, names: list[str]) -> Int[Tensor, " n"]:
        """Number in `names` of each next token's tag (`universal` or `penn`), or -1."""
        number = {name: i for i, name in enumerate(names)}
        tags = [number.get(tag, -1) for story in self.encoded for tag in getattr(story, kind)[1:]]
        return self.own(torch.tensor(tags, dtype=torch.long))

    def lemmas(self, ahead: bool = False) -> list[str]:
        """Dictionary form of the word at each position, or of the next token's word; "" for none.

        Where a story is untagged it is the token's own text in lower case.
        """
        every = [lemma for story in self.encoded for lemma in (story.lemmas[1:] if ahead else story.lemmas[:-1])]
        return every if self.whole is None else [every[i] for i in self.chosen.tolist()]

    def own(self, every: Tensor) -> Tensor:
        """Of values at all scored positions of its stories those at its own."""
        return every if self.whole is None else every[self.chosen]


@torch.inference_mode()
def run_streams(model: TransformerBridge, tokens: Int[Tensor, "story pos"], edits: Edits | None = None) -> Streams:
    """One forward pass of the trunk (no unembedding) of a one-layer model, or of a `Layer`, that layer's activations kept.

    `edits` maps names of ACTIVATIONS, or of any layer's ("blocks.0.attn.hook_k"), to functions of the activation; what
    one returns takes its place, for all that reads it (a pattern is the exception: TransformerLens discards edits of it).

    Raises:
        WorkbookError: a model of several layers.
    """
    count, number = model.cfg.n_layers, getattr(model, "number", 0) if isinstance(model, Layer) else 0
    if count > 1 and not isinstance(model, Layer):
        what = f"{model.cfg.model_name} has {count} layers and this is for models of one"
        raise WorkbookError(f"{what}: give one of its `layers(model)`.")
    return _run(model, tokens, [number], edits)[0]


@torch.inference_mode()
def run_layers(model: TransformerBridge, tokens: Int[Tensor, "story pos"]) -> list[Streams]:
    """The streams of every layer of a model, from one pass."""
    return _run(model, tokens, range(model.cfg.n_layers), None)


def _run(model: TransformerBridge, tokens: Tensor, numbers: Sequence, edits: Edits | None) -> list[Streams]:
    found: dict[str, Tensor] = {}

    def keep(value: Tensor, hook, name: str) -> Tensor:
        found[hook.name] = edits[name](value) if edits and name in edits else value
        return found[hook.name]

    names, last = (*ACTIVATIONS, "final"), f"blocks.{model.cfg.n_layers - 1}.hook_out"
    places = [[*(n if "embed" in n else f"blocks.{i}.{n}" for n in ACTIVATIONS), last] for i in numbers]
    pairs = (pair for own in places for pair in zip(own, names, strict=True))
    kept = {place: functools.partial(keep, name=name) for place, name in pairs}
    others = {place: lambda value, hook, edit=edit: edit(value) for place, edit in (edits or {}).items() if place not in names}  # fmt: skip
    with model.hooks(fwd_hooks=[*others.items(), *kept.items()]):
        model.original_model.transformer(tokens)
    found["hook_pos_embed"] = found["hook_pos_embed"].expand_as(found["hook_embed"])
    return [Streams(*(found[place] for place in own)) for own in places]


def finish(batch: Scan, residual: Float[Tensor, "n d_model"], chosen: Tensor | slice = slice(None)) -> Tensor:
    """The final stream, at the `chosen` positions, if the layer left these streams at a scan's positions (at all others of
    its stories, what it left)."""
    if not batch.above:
        return residual[chosen]
    whole, place = batch.whole or batch, torch.arange(len(batch.whole or batch))
    if batch.whole is not None:
        place, residual = batch.chosen, whole.resid_post.index_copy(0, batch.chosen, residual)
    sizes = torch.unique_consecutive(whole.story, return_counts=True)[1].tolist()
    for block in batch.above[:-1]:  # the other is its attention pattern
        residual = torch.cat([block(story[None])[0][0] for story in residual.split(sizes)])
    last, asked = batch.above[-1], torch.zeros(len(whole), dtype=torch.bool)  # asked only where it matters
    asked[place[chosen]] = True
    read, sees, fetched = last.ln1(residual[None])[0], last.attn.original_component.bias[0, 0].bool(), []
    sides = ((x @ (w := getattr(last.attn, f"W_{s}")).transpose(0, 1).flatten(1)).unflatten(1, w.shape[::2])
             + getattr(last.attn, f"b_{s}") for x, s in ((read[asked], "Q"), (read, "K"), (read, "V")))  # fmt: skip
    few = [int(part.sum()) for part in asked.split(sizes)]
    q, k, v = (side.transpose(0, 1).split(size, 1) for side, size in zip(sides, (few, sizes, sizes), strict=True))
    for one, keys, values, pos in zip(q, k, v, whole.pos[asked].split(few), strict=True):
        score = (one @ keys.mT).masked_fill(~sees[pos, : keys.shape[1]], -torch.inf)
        fetched.append(score.softmax(-1) @ values)
    mid = torch.einsum("hnd,hdm->nm", torch.cat(fetched, 1), last.attn.W_O) + last.attn.b_O + residual[asked]
    return (mid + last.mlp(last.ln2(mid[None]))[0])[(asked.cumsum(0) - 1)[place[chosen]]]


def walk(
    model: TransformerBridge,
    stories: Iterable[Story | EncodedStory],
    positions: int = 2048,
    edits: Edits | None = None,
) -> Iterator[Scan]:
    """Stream stories (or stories that this model's tokenizer has encoded) through the model in batches of at most about
    `positions` padded positions.

    `for batch in walk(model, stories): …`, or `next(walk(…))`. Memory does not grow with the number of stories. Stories
    of a batch need not be neighbours: `Scan.story` numbers them. `edits`: as `run_streams` has them.
    """
    for batch, tokens in batches(model, stories, positions):
        yield dataclasses.replace(batch, streams=run_streams(model, tokens, edits))


def batches(
    model: TransformerBridge, stories: Iterable[Story | EncodedStory], positions: int = 2048, asked: Sequence = ()
) -> Iterator[tuple[Scan, Int[Tensor, "story pos"]]]:
    """The batches of `walk` before the model has read them, each with its padded tokens; only the stories `asked` for."""
    numbered = enumerate(stories)
    while pool := list(islice(numbered, POOL)):
        encoded = [(i, _encoded(model, story)) for i, story in pool if not asked or asked[i]]
        encoded.sort(key=lambda pair: len(pair[1].tokens))
        part: list[tuple[int, EncodedStory]] = []
        for pair in encoded:
            if part and (len(part) + 1) * len(pair[1].tokens) > positions:
                yield _batch(model, part)
                part = []
            part.append(pair)
        if part:
            yield _batch(model, part)


def text_scan(model: TransformerBridge, stories: Iterable[Story]) -> Scan:
    """The scored positions of some stories in a model's tokens, which no model has read: for what is asked of text
    alone. Its stories stand in the order in which `batches` of them come (`Scan.encoded`)."""
    parts = [batch for batch, _ in batches(model, stories)]
    columns = (torch.cat([getattr(p, name) for p in parts]) for name in ("story", "pos", "token", "target"))
    return Scan(model, [e for part in parts for e in part.encoded], *columns)


def _encoded(model: TransformerBridge, story: Story | EncodedStory) -> EncodedStory:
    return story if isinstance(story, EncodedStory) else encode_story(story, model.tokenizer, model.cfg.n_ctx)


HOLD = ("resid_mid", "mlp_post", "z")


def scan(
    model: TransformerBridge, stories: Iterable[Story], hold: Sequence[str] = HOLD, keep: bool = False
) -> Scan:
    """All scored positions of some stories in one scan, the named columns of `Streams` held in memory.

    4 bytes a number: 1,024 neurons at 25,000 positions take 100 MB. What need not be held streams: `walk`. `keep`: for
    many walks over few stories, the batches too, with all of their streams (20 kB a position).

        explore = scan(load_model(), load_stories(split="explore"))
        explore.activations[:, 12].mean()
    """
    encoded = [_encoded(model, story) for story in stories]
    if not encoded:
        raise WorkbookError("No story is left to scan: give more stories, or another split.")
    columns, held, kept, end = [], {}, [], 0
    for batch in walk(model, encoded):
        start, end = end, end + len(batch)
        if keep:
            kept.append(dataclasses.replace(batch, story=batch.row + sum(len(part[0]) for part in columns)))
        for name in (*hold, "final")[: len(hold) + bool(getattr(model, "above", []))]:
            part = batch.flat(getattr(batch.streams, name))
            if name not in held:  # the whole column at once: memory never holds anything twice
                held[name] = part.new_empty(sum(len(one.tokens) - 1 for one in encoded), *part.shape[1:])
            held[name][start:end] = part
        columns.append((batch.encoded, batch.story, batch.pos, batch.token, batch.target))
    encoded, *columns = zip(*columns, strict=True)
    return Scan(model, [e for part in encoded for e in part], *map(torch.cat, columns), held=held, kept=kept)


def _batch(
    model: TransformerBridge, part: list[tuple[int, EncodedStory]]
) -> tuple[Scan, Int[Tensor, "story pos"]]:
    encoded = [story for _, story in part]
    device = model.cfg.device
    tokens = torch.nn.utils.rnn.pad_sequence([story.tokens for story in encoded], batch_first=True).to(device)
    lengths = [len(story.tokens) - 1 for story in encoded]
    row = torch.repeat_interleave(torch.tensor(lengths, device=device))
    story = torch.tensor([i for i, _ in part], device=device)[row]
    pos = torch.cat([torch.arange(length, device=device) for length in lengths])
    here, ahead = tokens[row, pos], tokens[row, pos + 1]
    return Scan(model, encoded, story, pos, here, ahead, row), tokens


def decoder(tokenizer) -> Callable[[int], str]:
    """A function that turns a token id into text fit for a table: ␣ for a blank, ⏎ for a line break, ¦ for a bar."""
    return lambda token: tokenizer.decode([token]).replace(" ", "␣").replace("\n", "⏎").replace("|", "¦")
