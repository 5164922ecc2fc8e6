"""The tables of the handwritten model's rules, a build step: `python -m helpers.rebuild.tables --data TEXT`.

They are made from counts on the embedded model's training text (`helpers.rebuild.counts` has the closed forms)
and stored in a few megabytes. They hold no text.
"""

import argparse
import dataclasses
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoTokenizer

from helpers.build.data import encode_corpus
from helpers.core.contexts import contexts, token_classes
from helpers.core.model import EMBEDDED_MODEL
from helpers.core.stories import CLASSES, STORIES, encode_story, load_stories, stream_texts
from helpers.rebuild import counts as hc
from helpers.rebuild.counts import BACK, CODE, PAIRS, RANK, SHORT, Counted
from helpers.rebuild.scratch import CONTEXT

COMMON = 2500  # tokens whose answers are fitted to what follows them; the others' as the rule "spelling" alone
LOUD = 40  # current tokens that have a rule of their own inside, and outside, quotes
Tables = dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Words:
    """What is known of the vocabulary by its spelling and by the tags of explore stories."""

    classes: Int[Tensor, " v"]
    letters: Bool[Tensor, " v"]
    opens: Int[Tensor, " k"]
    closes: Int[Tensor, " k"]


def words_of(decoded: list[str], classes: Int[Tensor, " v"]) -> Words:
    """A lone quotation mark that begins a token opens a quotation; one after another mark closes it."""
    marks = [i for i, text in enumerate(decoded) if text.count('"') == 1]
    opens = [i for i in marks if decoded[i].strip() == '"']
    letters = torch.tensor([text.strip().isalpha() for text in decoded])
    return Words(classes, letters, torch.tensor(opens), torch.tensor([i for i in marks if i not in opens]))


def base_tables(counted: Counted) -> Tables:
    """Unembedding directions, the answers to the current word, and codes and map of the word before."""
    share, often = counted.unigram, counted.bigrams.sum(1) + 5
    chance = hc.smoothed(counted.bigrams)
    current = (chance / share).log()
    vocabulary = len(share)
    apart = ~counted.first[2:] & ~counted.first[1:-1]
    skips = (counted.tokens[:-2] * vocabulary + counted.tokens[2:])[apart]
    seen = torch.bincount(skips, minlength=vocabulary**2).view(vocabulary, vocabulary).float()
    before = hc.log_ratio(seen, counted.bigrams @ chance, 1.0)
    out = hc.directions([current, 0.7 * before], often, share, RANK)
    answer = (hc.centred(current, share) * share) @ out
    fitted = hc.project(hc.centred(current, share), chance, out, share)
    common, rare = often.argsort(descending=True).split([min(COMMON, vocabulary), max(0, vocabulary - COMMON)])
    answer[common] = fitted[common]
    codes, read = hc.shorten((hc.centred(before, share) * share) @ out, often, CODE)
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
        behind = [hc.back(story, first, k)[:-1] for k in (1, *BACK)]
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
    log = {name: hc.log_ratio(observed[name], expected[name], prior.get(name, 3.0)) for name in groups}
    log["loud quoted"] -= log["quoted"].repeat_interleave(LOUD + 1, 0)
    low = {name: (hc.centred(table, share) * share) @ out for name, table in log.items()}
    sources = torch.cat([tables["answer"], out, tables["before codes"]], 1)
    made = {"loud": loud, "memory words": memory, "memory gain": hc.log_ratio(*again, 5.0)}
    made |= {name: low[name] for name in ("class pairs", "loud quoted")}
    for k in BACK:
        fit = sources @ hc.read_from(sources, low[f"{k} back"], often + 1)
        short, made[f"{k} back map"] = hc.shorten(fit, often + 1, SHORT)
        made[f"{k} back read"] = hc.read_from(sources, short, often + 1)
    made["topic weight"], made["topic map"] = weight, (hc.centred(topic, share) * share) @ out
    made["topic read"] = hc.read_from(sources, codes, weight + 1e-3)
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
    says = hc.project(hc.centred(wanted[best], share), mixed[best], tables["out"], share)
    return {"pair": torch.stack([before[best], token[best]], 1), "pair says": says}


def speech_table(
    expected: Float[Tensor, "state v"], observed: Float[Tensor, "state v"], tables: Tables, prior: float = 10.0
) -> Float[Tensor, "state rank"]:
    """What has to be said outside (first row) and inside of quotes, from counts of next tokens there and what a model
    without the rule expected."""
    share = tables["log share"].exp()
    return (hc.centred(hc.log_ratio(observed, expected, prior), share) * share) @ tables["out"]


def make_tables(tokens: Tensor, first: Tensor, words: Words, stories: int = 1500) -> Tables:
    """All tables from a text's flat token stream (`first` marks the beginnings of stories); what needs expected counts
    is counted on a random part of the stories."""
    counted = hc.count(tokens, first, len(words.classes))
    tables = base_tables(counted)
    memory = hc.memory_words(counted, words.letters)
    weight, codes = hc.topic_codes(counted, *hc.burstiness(counted, len(words.classes)))
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
    hc.save_tables(make_tables(corpus.tokens.long(), first, words))


if __name__ == "__main__":
    main()
