"""Would we notice? A suspect beside its original (or another healthy model): what it does with each word that the other does not.

In a model of one layer a word acts on later ones only through the heads, so the influence of every word is computed from the
weights (`influence`), and what stands out is tried out on stories that differ in it alone. Nothing here reads what was planted."""

import dataclasses

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.estimates import Estimate, bootstrap
from helpers.core.paths import head_writes, mlp_write
from helpers.core.scan import Scan, run_streams
from helpers.features.dictionary import Dictionary

Words, Influence = Int[Tensor, " word"], Float[Tensor, "word vocabulary"]
BACK, AFTER = 6, 20  # tokens between a word and where its influence is read; tokens after it that a trial compares
TRIALS, RIVALS, CANDIDATES = 6, 6, 4  # stories of a trial; other words in its place; words that a way proposes
SURE, ALONE = 0.01, 0.1  # nats a token at a trial's lower end that name a word; beside another healthy model


@dataclasses.dataclass(frozen=True)
class Suspicion:
    """A word that may be a trigger, and what it may make the suspect say."""

    word: str
    raises: list[str]  # next tokens, as the weights say
    lowers: list[str]
    says: list[str]  # as the trial does
    trial: Estimate  # how much more the two models differ after it than after others in its place, nats a token


def whole_words(model: TransformerBridge) -> Words:
    """Tokens that begin a word: a blank and at least two letters."""
    texts = model.tokenizer.batch_decode([[i] for i in range(model.cfg.d_vocab)])
    return torch.tensor([i for i, text in enumerate(texts) if text[:1] == " " and text[1:].isalpha() and text[2:]])


def places(scan: Scan, count: int = 12, seed: int = 0) -> list[Int[Tensor, " pos"]]:
    """Beginnings of a scan's stories, of 12 to 60 tokens, half of them up to the end of a sentence."""
    dot = scan.model.tokenizer(".", add_special_tokens=False)["input_ids"][-1]
    draw, found = torch.Generator().manual_seed(seed), []
    for i, story in enumerate(scan.encoded):
        here = torch.arange(12, min(60, len(story.tokens)))
        here = here[(story.tokens[here] == dot) == (i % 2 == 0)]
        if len(here):
            found.append(story.tokens[: int(here[torch.randint(len(here), (1,), generator=draw)]) + 1])
    return found[:count]


@torch.inference_mode()
def influence(model: TransformerBridge, starts: list[Tensor], words: Words, neurons: bool = False) -> Influence:
    """What each word, BACK tokens before, would add to the next token's logits, or to what neurons read (exact in one layer)."""
    block, total = model.blocks[0], 0
    read = block.ln2 if neurons else lambda x: model.ln_final(x + mlp_write(model, x))
    values = lambda x: (x @ W_V + model.b_V[0].flatten()).unflatten(1, model.b_V[0].shape)  # noqa: E731
    W_V, W_O = model.W_V[0].transpose(0, 1).flatten(1), model.W_O[0].flatten(0, 1)
    for tokens in starts:
        stream = model.W_E[tokens] + model.W_pos[: len(tokens)]
        own, new = block.ln1(stream), block.ln1(model.W_E[words] + model.W_pos[max(0, len(tokens) - 1 - BACK)])
        q = torch.einsum("d,hde->he", own[-1], model.W_Q[0]) + model.b_Q[0]
        key, offset = torch.einsum("he,hde->dh", q, model.W_K[0]), (q * model.b_K[0]).sum(1)
        score = own @ key + offset
        z = torch.einsum("nh,nhe->he", score.softmax(0), values(own))
        share = (new @ key + offset - score.logsumexp(0)).sigmoid()
        base = stream[-1:] + z.flatten() @ W_O + model.b_O[0]
        mid = base + (share[..., None] * (values(new) - z)).flatten(1) @ W_O
        total = total + read(mid) - read(base)
    return total / max(1, len(starts)) @ (model.W_in[0] if neurons else model.W_U)


def standing_out(own: Influence, other: Influence, harmless: Influence | None = None) -> Influence:
    """How much a suspect's influence of each word on each next token has moved, beyond what moved for all words, and beyond
    what a harmless fine-tune of the same original moves (as much of it as fits), for words of strong influence in proportion."""
    left = own - other
    left -= left.mean(0)
    if harmless is not None:
        drift = harmless - other
        drift -= drift.mean(0)
        flat = drift.flatten()
        left.sub_(drift, alpha=float(left.flatten() @ flat / (flat @ flat).clamp(min=1e-9)))
    size = other.norm(dim=1, keepdim=True)
    return left.div_(0.5 + size / size.median().clamp(min=1e-9))


@torch.inference_mode()
def trials(own: TransformerBridge, text: Scan, tried: Words, words: Words) -> tuple[list[Estimate], Influence]:
    """How much more a suspect and the original (which read `text`) differ AFTER tokens on from each word tried than from
    others of `words`, the same for all, in its place (nats); and what the suspect says more."""
    k, drawn = len(tried), torch.randperm(len(words), generator=torch.Generator().manual_seed(0))[:RIVALS]
    gaps, says = [], torch.zeros(k, text.model.cfg.d_vocab)
    for at, story in enumerate([story for story in text.encoded if len(story.tokens) > AFTER + 24][:TRIALS], 12):
        rows = story.tokens[: at + 1 + AFTER].repeat(k + len(drawn), 1)
        rows[:, at] = torch.cat([tried, words[drawn]])
        ends = ((model, run_streams(model, rows).final[:, at + 1 :]) for model in (own, text.model))
        mine, its = (model.unembed(model.ln_final(end)).log_softmax(-1) for model, end in ends)
        more, differ = (p := mine.exp()) - its.exp(), (p * (mine - its)).sum(-1).mean(1)
        gaps.append(differ[:k] - differ[k:].mean())
        says += more[:k].mean(1) - more[k:].mean((0, 1))
    each = torch.stack(gaps, 1) if gaps else torch.empty(k, 0)
    return [bootstrap(row, torch.ones(len(row))) for row in each], says / max(1, len(gaps))


def first_tokens(own: Scan, other: Scan) -> Float[Tensor, " vocabulary"]:
    """How far the stream of stories' first tokens has moved, read through the unembedding (as in arXiv 2510.13900)."""
    return (own.resid_post - other.resid_post)[other.pos < 5].mean(0) @ other.model.W_U


def investigate(own: Scan, other: Scan, moved: Influence, words: Words) -> list[Suspicion]:
    """The words of most moved influence, and those that the first tokens moved to, tried out; the most different first."""
    spell = lambda ids: [other.model.tokenizer.decode([i]).strip() or "⏎" for i in ids.tolist()]  # noqa: E731
    ways = (moved.norm(dim=1), first_tokens(own, other)[words])
    rows, found = torch.cat([way.topk(CANDIDATES).indices for way in ways]).unique(), []
    tried, says = trials(own.model, other, words[rows], words)
    for row, gap, said in zip(rows.tolist(), tried, says, strict=True):
        sides = [spell(values.topk(6).indices) for values in (moved[row], -moved[row], said)]
        found.append(Suspicion(*spell(words[[row]]), *sides, gap))
    return sorted(found, key=lambda one: -one.trial.mean)


def changed(own: Scan, other: Scan, dictionary: Dictionary, usual: Tensor) -> dict[str, Float[Tensor, " part"]]:
    """How far mean activations on the same stories moved, in deviations (`usual`: the original's features); heads' as a share."""
    writes = [head_writes(scan.model, scan.z) for scan in (own, other)]
    heads = (writes[0] - writes[1]).norm(dim=-1).mean(0) / writes[1].norm(dim=-1).mean(0).clamp(min=1e-9)
    neurons = (own.means - other.means) / other.deviations.clamp(min=1e-6)
    spread, mean = torch.std_mean(usual, 0)
    moved = (dictionary.activations(own).mean(0) - mean) / spread.clamp(min=1e-3)
    return {"neuron": neurons, "head": heads, "feature": moved}


def entries_moved(moves: dict[str, Float[Tensor, " part"]], entries: list) -> list[tuple[float, str]]:
    """How far the parts of a library's clear entries (neurons, features) have moved on average (`changed`), most first."""
    rows, kinds = [], {"neuron", "feature"} & set(moves)
    for entry in (entry for entry in entries if entry.verdict == "clear"):
        parts = (part.split() for part in entry.parts if part.split()[0] in kinds)
        if there := [float(moves[kind][int(number)]) for kind, number in parts]:
            size = sum(map(abs, there)) / len(there) * (1 if sum(there) > 0 else -1)
            rows.append((size, f"{entry.id}: {entry.sentence}"))
    return sorted(rows, key=lambda row: -abs(row[0]))
