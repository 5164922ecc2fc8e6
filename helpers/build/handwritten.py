"""The tables of the handwritten model's rules: `python -m helpers.build.handwritten --data TEXT`.

They are made from counts on the embedded model's training text and stored in a few megabytes; they hold no text. No
step is a gradient step: a table is a logarithm of observed over expected counts, shortened by a singular value
decomposition or fitted to the unembedding's directions by weighted least squares (`project`).

Source of the expected counts: iterative scaling (Darroch & Ratcliff, 1972), every rule scaled once, given the rules
of the current word and the word before.
"""

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoTokenizer

from helpers.build.data import encode_corpus
from helpers.core.contexts import contexts, token_classes
from helpers.core.files import DATA, run_main, write_atomic
from helpers.core.model import EMBEDDED_MODEL
from helpers.core.stories import CLASSES, STORIES, encode_story, load_stories, quotes, stream_texts

TABLES = DATA / "handwritten" / "tables.safetensors"
CONTEXT = 512
RANK, CODE, SHORT = 255, 126, 64  # directions of the unembedding, of a word as the word before, of a further head
MEMORY, PAIRS, TOPICS = 288, 1000, 64  # words with a memory of their own; pairs of words; directions of topics
BACK = (2, 3, 4)  # distances of the heads that look further back than one word
COMMON = 2500  # tokens whose answers are fitted to what follows them; the others' as the rule "spelling" alone
LOUD = 40  # current tokens that have a rule of their own inside, and outside, quotes
Tables = dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Counted:
    """A text's tokens and what was counted on it. `first` marks the `<|endoftext|>` that begins a story."""

    tokens: Int[Tensor, " n"]
    first: Bool[Tensor, " n"]
    bigrams: Float[Tensor, "vocabulary vocabulary"]
    unigram: Float[Tensor, " vocabulary"]


def count(tokens: Int[Tensor, " n"], first: Bool[Tensor, " n"], vocabulary: int) -> Counted:
    """Count a flat token stream; no bigram crosses the beginning of a story."""
    pairs = (tokens[:-1] * vocabulary + tokens[1:])[~first[1:]]
    bigrams = torch.bincount(pairs, minlength=vocabulary**2).view(vocabulary, vocabulary).float()
    unigram = bigrams.sum(0) + 0.5
    return Counted(tokens, first, bigrams, unigram / unigram.sum())


def smoothed(bigrams: Float[Tensor, "v v"]) -> Float[Tensor, "v v"]:
    """Interpolated Kneser-Ney probabilities of the next token given the current one, rows summing to one."""
    once, twice = (bigrams == 1).sum(), (bigrams == 2).sum()
    discount = float(once / (once + 2 * twice).clamp(min=1))
    often = (bigrams > 0).sum(0) + 0.5
    total = bigrams.sum(1, keepdim=True)
    free = torch.where(total > 0, discount * (bigrams > 0).sum(1, keepdim=True), 1.0)
    mixed = (bigrams - discount).clamp(min=0) + free * often / often.sum()
    return mixed / mixed.sum(1, keepdim=True)


def log_ratio(observed: Float[Tensor, "*n"], expected: Float[Tensor, "*n"], prior: float) -> Float[Tensor, "*n"]:
    """Log of observed over expected counts, shrunk towards 0 by `prior` counts."""
    return ((observed + prior) / (expected + prior)).log()


def directions(
    tables: list[Float[Tensor, "v v"]], weight: Float[Tensor, " v"], share: Float[Tensor, " v"], rank: int
) -> Float[Tensor, "v rank"]:
    """Unembedding directions O: the leading right singular vectors of log tables, rows weighted by `weight`, columns
    by `share`. They are orthonormal under the tokens' shares: O' diag(share) O = 1."""
    rows = torch.cat([weight[:, None].sqrt() * centred(table, share) * share.sqrt() for table in tables])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        right = torch.svd_lowrank(rows, q=rank + 30, niter=2)[2]
    return right[:, :rank] / share.sqrt()[:, None]


def centred(table: Float[Tensor, "n v"], share: Float[Tensor, " v"]) -> Float[Tensor, "n v"]:
    """A table of logits less its mean under the tokens' shares (the softmax does not see it)."""
    return table - (table * share).sum(1, keepdim=True)


def project(
    wanted: Float[Tensor, "n v"],
    weight: Float[Tensor, "n v"],
    out: Float[Tensor, "v rank"],
    share: Float[Tensor, " v"],
    top: int = 300,
    chunk: int = 128,
) -> Float[Tensor, "n rank"]:
    """The vectors y whose logits O y come nearest to `wanted`, by least squares.

    A token's square counts by `weight` (only the `top` heaviest of a row) plus `share`: what is likely here, and,
    less so, what is likely anywhere.
    """
    found = []
    for rows, heavy in zip(wanted.split(chunk), weight.split(chunk), strict=True):
        w, ids = heavy.topk(min(top, heavy.shape[1]), 1)
        o = out[ids]
        left = torch.einsum("ntr,nt,nts->nrs", o, w, o) + torch.eye(out.shape[1])
        right = torch.einsum("ntr,nt->nr", o, w * rows.gather(1, ids)) + (rows * share) @ out
        found.append(torch.linalg.solve(left, right[..., None])[..., 0])
    return torch.cat(found)


def shorten(
    table: Float[Tensor, "v rank"], weight: Float[Tensor, " v"], size: int
) -> tuple[Float[Tensor, "v size"], Float[Tensor, "size rank"]]:
    """A table as codes times a map, the best of that size by weighted squares."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        u, s, v = torch.svd_lowrank(weight[:, None].sqrt() * table, q=size + 20, niter=3)
    return u[:, :size] * s[:size] / weight[:, None].sqrt(), v[:, :size].T


def read_from(
    codes: Float[Tensor, "v d"], wanted: Float[Tensor, "v k"], weight: Float[Tensor, " v"], ridge: float = 1e-3
) -> Float[Tensor, "d k"]:
    """The linear map from codes to wanted vectors, by weighted ridge regression: how a head reads an embedding."""
    left = (codes * weight[:, None]).T @ codes
    return torch.linalg.solve(
        left + ridge * left.diagonal().mean() * torch.eye(len(left)), (codes * weight[:, None]).T @ wanted
    )


def back(tokens: Int[Tensor, " n"], first: Bool[Tensor, " n"], steps: int) -> Int[Tensor, " n"]:
    """The token `steps` before each one; before a story's beginning all is its first token."""
    start = torch.where(first, torch.arange(len(tokens)), 0).cummax(0).values
    return tokens[torch.maximum(torch.arange(len(tokens)) - steps, start)]


def burstiness(counted: Counted, vocabulary: int) -> tuple[Float[Tensor, " v"], Float[Tensor, " v"]]:
    """How often a token comes in a story that has it, over what chance would give; and how many stories have it."""
    story = counted.first.long().cumsum(0) - 1
    stories = int(story[-1]) + 1
    documents = torch.bincount(
        torch.unique(story * vocabulary + counted.tokens) % vocabulary, minlength=vocabulary
    )
    total = torch.bincount(counted.tokens, minlength=vocabulary).float()
    rate = total / stories
    by_chance = rate / (1 - (-rate).exp()).clamp(min=1e-9)
    times = total / documents.clamp(min=1) / by_chance.clamp(min=1)
    return torch.where(documents >= 20, times, 1.0), documents.float()


def memory_words(counted: Counted, letters: Bool[Tensor, " v"], size: int = MEMORY) -> Int[Tensor, " size"]:
    """The words whose return a story gives away most: repeats within stories, times the log of their burstiness."""
    burst, documents = burstiness(counted, len(letters))
    total = torch.bincount(counted.tokens, minlength=len(letters)).float()
    worth = (total - documents) * burst.clamp(min=1).log() * letters * (burst > 1.4)
    return worth.topk(size).indices


def topic_codes(counted: Counted, burst: Float[Tensor, " v"], documents: Float[Tensor, " v"], size: int = TOPICS):
    """Codes of content words by the company that they keep: eigenvectors of the log ratio of stories that have both.

    Returns the weight of each word as a bearer of its story's topic and the codes [vocabulary size].
    """
    vocabulary, story = len(burst), counted.first.long().cumsum(0) - 1
    content = ((burst > 1.5) & (documents >= 50)).nonzero()[:, 0]
    number = torch.full((vocabulary,), -1)
    number[content] = torch.arange(len(content))
    kept = number[counted.tokens] >= 0
    pairs = torch.unique(story[kept] * len(content) + number[counted.tokens[kept]])
    stories = int(story[-1]) + 1
    has = torch.zeros(stories, len(content))
    has[pairs // len(content), pairs % len(content)] = 1
    together = has.T @ has
    alone = together.diagonal().clone()
    ratio = log_ratio(together, alone[:, None] * alone / stories, 5.0).fill_diagonal_(0)
    values, vectors = torch.linalg.eigh(ratio)
    codes = torch.zeros(vocabulary, size)
    codes[content] = vectors[:, -size:] * values[-size:].clamp(min=0).sqrt()
    weight = torch.zeros(vocabulary)
    weight[content] = (burst[content] - 1).clamp(max=5)
    return weight, codes


def save_tables(tables: dict[str, Tensor], path: str | Path = TABLES) -> Path:
    """Store tables as 8-bit numbers with a scale a column (whole numbers and vectors as they are), atomically."""
    packed = {}
    for name, table in tables.items():
        if table.is_floating_point() and table.ndim == 2:
            scale = table.abs().amax(0).clamp(min=1e-9) / 127
            packed |= {name: (table / scale).round().to(torch.int8).contiguous(), f"{name} scale": scale}
        else:
            packed[name] = table.contiguous()
    return write_atomic(path, lambda temporary: save_file(packed, temporary))


@dataclasses.dataclass(frozen=True)
class Words:
    """What is known of the vocabulary by its spelling and by the tags of explore stories."""

    classes: Int[Tensor, " v"]
    letters: Bool[Tensor, " v"]
    opens: Int[Tensor, " k"]
    closes: Int[Tensor, " k"]


def words_of(decoded: list[str], classes: Int[Tensor, " v"]) -> Words:
    """A lone quotation mark that begins a token opens a quotation; one after another mark closes it."""
    marks = [i for i, text in enumerate(decoded) if quotes(text) == 1]
    opens = [i for i in marks if decoded[i].strip() in ('"', "“")]
    letters = torch.tensor([text.strip().isalpha() for text in decoded])
    return Words(classes, letters, torch.tensor(opens), torch.tensor([i for i in marks if i not in opens]))


def base_tables(counted: Counted) -> Tables:
    """Unembedding directions, the answers to the current word, and codes and map of the word before."""
    share, often = counted.unigram, counted.bigrams.sum(1) + 5
    chance = smoothed(counted.bigrams)
    current = (chance / share).log()
    vocabulary = len(share)
    apart = ~counted.first[2:] & ~counted.first[1:-1]
    skips = (counted.tokens[:-2] * vocabulary + counted.tokens[2:])[apart]
    seen = torch.bincount(skips, minlength=vocabulary**2).view(vocabulary, vocabulary).float()
    before = log_ratio(seen, counted.bigrams @ chance, 1.0)
    out = directions([current, 0.7 * before], often, share, RANK)
    answer = (centred(current, share) * share) @ out
    fitted = project(centred(current, share), chance, out, share)
    common, rare = often.argsort(descending=True).split([min(COMMON, vocabulary), max(0, vocabulary - COMMON)])
    answer[common] = fitted[common]
    codes, read = shorten((centred(before, share) * share) @ out, often, CODE)
    made = {"log share": share.log(), "out": out, "answer": answer, "before codes": codes, "before map": read}
    return made | {"rare": rare, "spelling": fitted[rare] - answer[rare]}


def base_logits(tables: Tables, token: Int[Tensor, " n"], before: Int[Tensor, " n"]) -> Float[Tensor, "n v"]:
    """The logits of the rules of the current word and the word before."""
    y = tables["answer"][token] + tables["before codes"][before] @ tables["before map"]
    return tables["log share"] + y @ tables["out"].T


@dataclasses.dataclass(frozen=True)
class Features:
    """What the further rules read at each position of some text (the last position of a story has no next token)."""

    token: Int[Tensor, " n"]
    target: Int[Tensor, " n"]
    behind: list[Int[Tensor, " n"]]
    quoted: Bool[Tensor, " n"]
    topic: Float[Tensor, "n topics"]
    memory: Bool[Tensor, "n words"]


def features(
    stories: list[Int[Tensor, " pos"]], words: Words, memory: Int[Tensor, " m"], weight: Tensor, codes: Tensor
) -> Features:
    """Features of whole stories, each beginning with `<|endoftext|>`."""
    parts = []
    for story in stories:
        first = torch.zeros(len(story), dtype=torch.bool)
        first[0] = True
        behind = [back(story, first, k)[:-1] for k in (1, *BACK)]
        turn = torch.isin(story, words.opens).long() - torch.isin(story, words.closes).long()
        last = torch.where(turn != 0, torch.arange(len(story)), 0).cummax(0).values
        heavy = weight[story][:, None]
        topic = (heavy * codes[story]).cumsum(0) / (heavy.cumsum(0) + 1)
        seen = (story[:, None] == memory).cummax(0).values & (story[:, None] != memory)
        parts.append((story[:-1], story[1:], *behind, (turn[last] > 0)[:-1], topic[:-1], seen[:-1]))
    token, target, *behind, quoted, topic, seen = (torch.cat(part) for part in zip(*parts, strict=True))
    return Features(token, target, behind, quoted, topic, seen)


def chunks(tables: Tables, f: Features, size: int = 2048) -> Iterator[tuple[Tensor, Float[Tensor, "n v"]]]:
    """Positions and the base rules' probabilities there, a chunk at a time."""
    for i in tqdm(torch.arange(len(f.token)).split(size), desc="expected counts", leave=False):
        yield i, base_logits(tables, f.token[i], f.behind[0][i]).softmax(-1)


def residual_counts(
    tables: Tables, f: Features, groups: dict[str, tuple[Int[Tensor, " n"], int]], memory: Int[Tensor, " m"]
):
    """Observed and expected next-token counts, the latter under the base rules, of each group (given with the number of
    groups); and the topics' and memory's sums."""
    vocabulary = len(tables["log share"])
    expected = {name: torch.zeros(size, vocabulary) for name, (_, size) in groups.items()}
    push, size = torch.zeros(2, f.topic.shape[1], vocabulary)
    again = torch.zeros(2, len(memory))
    for i, chance in chunks(tables, f):
        for name, (group, _) in groups.items():
            expected[name].index_add_(0, group[i], chance)
        topic = f.topic[i]
        push.index_add_(1, f.target[i], topic.T)
        push -= topic.T @ chance
        size += (topic**2).T @ chance
        again[0] += (f.memory[i] & (f.target[i, None] == memory)).sum(0)
        again[1] += (f.memory[i] * chance[:, memory]).sum(0)
    observed = {
        name: torch.bincount(g * vocabulary + f.target, minlength=expected[name].numel()).view_as(expected[name])
        for name, (g, _) in groups.items()
    }
    return observed, expected, push / (size + 3.0), again


def further_tables(
    tables: Tables, f: Features, words: Words, memory: Tensor, weight: Tensor, codes: Tensor
) -> Tables:
    """Tables of all other rules but the pairs', each from observed and expected counts given the base rules."""
    share, out = tables["log share"].exp(), tables["out"]
    often = torch.bincount(f.token, minlength=len(share)).float()
    loud = often.topk(LOUD).indices
    number = torch.full((len(share),), LOUD).index_put((loud,), torch.arange(LOUD))
    kind = words.classes + 1  # 0 for tokens without a class
    kinds = len(CLASSES) + 1
    groups = {f"{k} back": (token, len(share)) for k, token in zip(BACK, f.behind[1:], strict=True)}
    groups["class pairs"] = kind[f.behind[0]] * kinds + kind[f.token], kinds**2
    groups["quoted"] = f.quoted.long(), 2
    groups["loud quoted"] = f.quoted * (LOUD + 1) + number[f.token], 2 * (LOUD + 1)
    observed, expected, topic, again = residual_counts(tables, f, groups, memory)
    prior = {"class pairs": 20.0, "quoted": 20.0, "loud quoted": 10.0}
    log = {name: log_ratio(observed[name], expected[name], prior.get(name, 3.0)) for name in groups}
    log["loud quoted"] -= log["quoted"].repeat_interleave(LOUD + 1, 0)
    low = {name: (centred(table, share) * share) @ out for name, table in log.items()}
    sources = torch.cat([tables["answer"], out, tables["before codes"]], 1)
    made = {"loud": loud, "memory words": memory, "memory gain": log_ratio(*again, 5.0)}
    made |= {name: low[name] for name in ("class pairs", "loud quoted")}
    for k in BACK:
        fit = sources @ read_from(sources, low[f"{k} back"], often + 1)
        short, made[f"{k} back map"] = shorten(fit, often + 1, SHORT)
        made[f"{k} back read"] = read_from(sources, short, often + 1)
    made["topic weight"], made["topic map"] = weight, (centred(topic, share) * share) @ out
    made["topic read"] = read_from(sources, codes, weight + 1e-3)
    return made


def pair_tables(tables: Tables, counted: Counted, prior: float = 20.0, candidates: int = 4000) -> Tables:
    """The pairs of words whose next words the base rules miss most, and what a neuron for each has to add."""
    vocabulary, share = len(tables["log share"]), tables["log share"].exp()
    apart = ~counted.first[2:] & ~counted.first[1:-1]
    code = (counted.tokens[:-2] * vocabulary + counted.tokens[1:-1])[apart]
    pairs, inverse, often = torch.unique(code, return_inverse=True, return_counts=True)
    chosen = often.topk(min(candidates, len(pairs))).indices
    rank = torch.full((len(pairs),), -1).index_put((chosen,), torch.arange(len(chosen)))[inverse]
    next_token = counted.tokens[2:][apart][rank >= 0]
    seen = torch.bincount(rank[rank >= 0] * vocabulary + next_token, minlength=len(chosen) * vocabulary)
    before, token = pairs[chosen] // vocabulary, pairs[chosen] % vocabulary
    rows = []
    for i in torch.arange(len(chosen)).split(500):
        base = base_logits(tables, token[i], before[i]).log_softmax(-1)
        count = seen.view(-1, vocabulary)[i].float()
        total = count.sum(1, keepdim=True)
        mixed = (count + prior * base.exp()) / (total + prior)
        rows.append((mixed, mixed.log() - base, total[:, 0] * (mixed * (mixed.log() - base)).sum(1)))
    mixed, wanted, gain = (torch.cat(part) for part in zip(*rows, strict=True))
    best = gain.topk(min(PAIRS, len(gain))).indices
    says = project(centred(wanted[best], share), mixed[best], tables["out"], share)
    return {"pair": torch.stack([before[best], token[best]], 1), "pair says": says}


def make_tables(tokens: Tensor, first: Tensor, words: Words, stories: int = 1500) -> Tables:
    """All tables from a text's flat token stream (`first` marks the beginnings of stories); what needs expected counts
    is counted on a random part of the stories."""
    counted = count(tokens, first, len(words.classes))
    tables = base_tables(counted)
    memory = memory_words(counted, words.letters)
    weight, codes = topic_codes(counted, *burstiness(counted, len(words.classes)))
    starts = [*first.nonzero()[:, 0].tolist(), len(tokens)]
    chosen = torch.randperm(len(starts) - 1, generator=torch.Generator().manual_seed(0))[:stories].tolist()
    sample = features([tokens[starts[i] : starts[i + 1]] for i in chosen], words, memory, weight, codes)
    tables |= further_tables(tables, sample, words, memory, weight, codes)
    tables |= pair_tables(tables, counted)
    return tables | {"classes": words.classes, "opens": words.opens, "closes": words.closes}


def main() -> None:
    """Command line: count a text and store the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="the text to count: the embedded model's training text")
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_MODEL)
    corpus = encode_corpus(stream_texts(options.data), tokenizer.backend_tokenizer, CONTEXT, "encoding")
    first = torch.zeros(len(corpus.tokens), dtype=torch.bool)
    first[corpus.starts[:-1]] = True
    tagged = contexts(encode_story(story, tokenizer, CONTEXT) for story in load_stories(STORIES, "explore"))
    decoded = [tokenizer.decode([i]) for i in range(len(tokenizer))]
    words = words_of(decoded, token_classes(tagged, len(tokenizer)))
    save_tables(make_tables(corpus.tokens.long(), first, words))


if __name__ == "__main__":
    run_main(main)
