"""Handmade components beside the ones they replace, and what proposed rules name."""

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.contexts import Contexts, state_names
from helpers.core.estimates import Estimate, bootstrap
from helpers.core.paths import head_writes
from helpers.core.scan import Scan, run_streams
from helpers.core.stories import CLASSES, EncodedStory, Story
from helpers.heads.copying import effective_embedding, token_writes
from helpers.heads.patterns import flat_heads, overlap
from helpers.neurons.predicates import LEVELS, WordGroups, group_slot
from helpers.neurons.rules import Rule
from helpers.neurons.writes import logit_writes
from helpers.rebuild.heads import HandQueries, HandValues, Way
from helpers.rebuild.neurons import Installed, read_input


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


def seen_before(
    story: Int[Tensor, " n"], token: Int[Tensor, " n"], target: Int[Tensor, " n"]
) -> Bool[Tensor, " n"]:
    """Where the next token has stood in the same story up to here."""
    seen = torch.zeros(len(story), dtype=torch.bool)
    for number in story.unique():
        at = (story == number).nonzero()[:, 0]
        seen[at] = (target[at][:, None] == token[at]).tril().any(1)
    return seen


def by_class(
    story: Int[Tensor, " n"],
    classes: Int[Tensor, " n"],
    seen: Bool[Tensor, " n"],
    values: Float[Tensor, " n"],
    least: float = 0.01,
) -> dict[str, Estimate]:
    """Means of a column by class of the next token and whether it was seen before in the story, for groups of at least
    that share of all positions."""
    rows = {}
    for c, name in enumerate(CLASSES):
        for again in (False, True):
            here = (classes == c) & (seen == again)
            if here.float().mean() >= least:
                rows[f"{name}, {'seen before' if again else 'new'}"] = story_mean(story[here], values[here])
    return rows


def kinds_of_places(context: Contexts) -> dict[str, Bool[Tensor, " n"]]:
    """A division of positions by where they stand (they overlap)."""
    state = dict(zip(state_names(), context.states.T, strict=True))
    names = ("inside quotes", "at the start of a sentence", "in the opening sentence", "within a word")
    kinds = {name: state[name] for name in names if state[name].any()}
    begins = torch.cat([torch.tensor([True]), context.story[1:] != context.story[:-1]])
    place = torch.arange(len(begins))
    into = place - torch.where(begins, place, 0).cummax(0).values
    kinds |= {"in the first 32 tokens": into < 32, "after 128 tokens": into >= 128}
    return {name: here for name, here in kinds.items() if here.any()}


def kinds_of_words(classes: Int[Tensor, " n"], seen: Bool[Tensor, " n"]) -> dict[str, Bool[Tensor, " n"]]:
    """A coarse division of positions by what comes next."""

    def among(*names: str) -> Bool[Tensor, " n"]:
        return torch.isin(classes, torch.tensor([CLASSES.index(name) for name in names]))

    things = among("NOUN", "PROPN")
    kinds = {"names and things seen before": things & seen, "names and things that are new": things & ~seen}
    kinds |= {"verbs": among("VERB", "AUX"), "marks and line breaks": among("PUNCT", "SPACE")}
    return kinds | {"all others": ~torch.stack(list(kinds.values())).any(0)}


def gap_table(story: Int[Tensor, " n"], kinds: dict[str, Bool[Tensor, " n"]], gap: Float[Tensor, " n"]) -> str:
    """A Markdown table of a gap by kinds of positions: how many they are, its mean there, what share of it they hold."""
    lines = ["| next token | share of positions | gap in nats | share of the whole gap |", "|---|---|---|---|"]
    for name, here in kinds.items():
        if here.any():
            part = f"{story_mean(story[here], gap[here]).text()} | {gap[here].sum() / gap.sum():.0%}"
            lines.append(f"| {name} | {here.float().mean():.0%} | {part} |")
    return "\n".join(lines)


def worst_cases(
    context: Contexts, losses: tuple[Tensor, Tensor], decode: Callable[[int], str], count: int
) -> list[str]:
    """The lines of a table of the positions where one loss exceeds the other most, at most one a story and one a next
    token: the ten tokens up to there, the next one, and the two losses."""
    rows = ["| story so far | next | handmade | whole |", "|---|---|---|---|"]
    stories, targets = set(), set()
    for i in (losses[0] - losses[1]).argsort(descending=True).tolist():
        story, target = int(context.story[i]), int(context.target[i])
        if story in stories or target in targets:
            continue
        stories.add(story)
        targets.add(target)
        start = max(int((context.story == story).nonzero()[0]), i - 9)
        before = "".join(decode(t) for t in context.token[start : i + 1].tolist()).replace("␣", " ")
        rows.append(f"| …{before} | **{decode(target)}** | {losses[0][i]:.1f} | {losses[1][i]:.1f} |")
        if len(stories) == count:
            break
    return rows


Pair = tuple[Float[Tensor, " head"], Float[Tensor, " head"]]  # a head and its handmade copy; and another's copy


def another(heads: int) -> Int[Tensor, " head"]:
    """For each head the one that serves as its control."""
    return (torch.arange(heads) + max(1, heads // 2)) % heads


@torch.no_grad()
def responses(
    model: TransformerBridge, batches: Iterable[Scan], way: Way, removed: Float[Tensor, "head d_model"]
) -> dict[str, Pair | float]:
    """Over the scored positions of a walk: "attention in common" (mean overlap of the patterns), "writes" (correlation
    of what is written, over positions and directions), and "writes of all heads together" (a number)."""
    other, count = another(model.cfg.n_heads), 0
    shared, sums, cross, squares = torch.zeros(2, model.cfg.n_heads), 0.0, 0.0, 0.0
    for batch in batches:
        made, own = way.patterns(batch), batch.streams.pattern
        shared += torch.stack([flat_heads(batch, overlap(p, own)).sum(0) for p in (made, made[:, other])])
        hand = way.writes(model, batch, removed)
        writes = torch.stack([head_writes(model, batch.flat(batch.streams.z)), hand, hand[:, other]])
        writes = torch.cat([writes, writes.sum(2, keepdim=True)], 2)  # the last: all heads together
        sums, squares = sums + writes.sum(1), squares + writes.pow(2).sum((1, 3))
        cross = cross + (writes[1:] * writes[0]).sum((1, 3))
        count += len(batch.target)
    cross = cross - (sums[1:] * sums[0]).sum(-1) / count
    squares = (squares - sums.pow(2).sum(-1) / count).clamp(min=1e-12)
    alike = cross / (squares[0] * squares[1:]).sqrt()
    found = {"attention in common": tuple(shared / count), "writes": tuple(alike[:, :-1])}
    return found | {"writes of all heads together": alike[0, -1].item()}


def product_cosine(
    left: Float[Tensor, "head a e"], right: Float[Tensor, "head b e"], other_left: Tensor, other_right: Tensor
) -> Float[Tensor, " head"]:
    """Cosine of left · rightᵀ with another such product, head by head, never making either."""

    def inner(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        return ((a.mT @ c) * (b.mT @ d)).sum((1, 2))

    pairs = (left, right), (other_left, other_right)
    sizes = [inner(*pair, *pair).clamp(min=1e-20).sqrt() for pair in pairs]
    return inner(*pairs[0], *pairs[1]) / sizes[0] / sizes[1]


def weights_alike(model: TransformerBridge, queries: HandQueries, values: HandValues) -> dict[str, Pair]:
    """Cosines of the products that matter: query weights (with their bias) times key weights, value times output weights."""
    other = another(model.cfg.n_heads)
    own_q = torch.cat([model.W_Q[0], model.b_Q[0][:, None]], 1)
    hand_q = torch.cat([queries.q, queries.b_q[:, None]], 1)
    own_o, hand_o = model.W_O[0].mT, values.o.mT
    asks = [product_cosine(own_q, model.W_K[0], hand_q[h], queries.k[h]) for h in (slice(None), other)]
    moves = [product_cosine(model.W_V[0], own_o, values.v[h], hand_o[h]) for h in (slice(None), other)]
    return {"queries and keys": tuple(asks), "values and outputs": tuple(moves)}


@torch.no_grad()
def promoted_alike(model: TransformerBridge, values: HandValues, tokens: Int[Tensor, " k"]) -> Pair:
    """What a head promotes if it looks at one token (less what it promotes for the average of these): correlation over the
    vocabulary between head and copy, averaged over the tokens."""
    read, found = effective_embedding(model, tokens), []
    for h, o in enumerate(another(model.cfg.n_heads).tolist()):
        sides = [token_writes(model, h, tokens), *(read @ values.v[i] @ values.o[i] for i in (h, o))]
        own, hand, far = ((side - side.mean(0)) @ model.W_U for side in sides)
        found.append([correlation(own.T, hand.T).mean(), correlation(own.T, far.T).mean()])
    return tuple(torch.tensor(found).T)


def random_batch(
    model: TransformerBridge, tokens: Int[Tensor, " k"], stories: int = 24, length: int = 64, seed: int = 0
) -> Scan:
    """Synthetic stimuli: stories of tokens that are drawn at random, all alike, without a word of sense."""
    generator = torch.Generator().manual_seed(seed)
    rows = tokens[torch.randint(len(tokens), (stories, length), generator=generator)]
    rows[:, 0] = model.tokenizer.bos_token_id
    nothing = torch.zeros(length, 2).long(), torch.full((length,), -1)
    encoded = [EncodedStory(Story(""), row, *nothing) for row in rows]
    row, pos = torch.arange(stories).repeat_interleave(length - 1), torch.arange(length - 1).repeat(stories)
    return Scan(encoded, row, row, pos, rows[row, pos], rows[row, pos + 1], run_streams(model, rows))
