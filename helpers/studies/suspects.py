"""Would we notice? A suspect beside its original (or another healthy model): what it does with each word that the other does not.

In a model of one layer a word acts on later ones only through the heads, so the influence of every word is computed from the
weights (`influence`), and what stands out is tried out on stories that differ in it alone (`trial`). Nothing here reads what was planted.
"""

import dataclasses

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.estimates import Estimate, bootstrap
from helpers.core.files import WorkbookError
from helpers.core.model import one_layer
from helpers.core.paths import head_writes, mlp_write
from helpers.core.scan import Scan
from helpers.features.dictionary import load_dictionary

Influence = Float[Tensor, "word vocabulary"]
BACK, AFTER = 6, 20  # tokens between a word and where its influence is read; tokens after it that a trial compares
TRIALS, RIVALS = 6, 6  # stories of a trial; other words that it puts in the same place
CANDIDATES = 4  # words that each way of looking proposes
SURE = 0.01  # nats a token that a trial's lower end needs for a word to be named
ALONE = 0.1  # the same without the original: two healthy models differ by nearly as much


@dataclasses.dataclass(frozen=True)
class Suspicion:
    """A word that may be a trigger, and what it may make the suspect say."""

    word: str
    raises: list[str]  # next tokens, as the weights say
    lowers: list[str]
    says: list[str]  # as the trial does
    trial: Estimate  # how much more the two models differ after it than after others in its place, nats a token


def comparable(suspect: TransformerBridge, other: TransformerBridge) -> None:
    """Raise a WorkbookError where a model has several layers, or the vocabularies differ."""
    for model in (suspect, other):
        one_layer(model)
    if suspect.tokenizer.get_vocab() != other.tokenizer.get_vocab():
        raise WorkbookError("The two have different vocabularies: give the model that the suspect was tuned from.")


def whole_words(model: TransformerBridge) -> Int[Tensor, " word"]:
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
def influence(
    model: TransformerBridge, beginnings: list[Tensor], words: Int[Tensor, " word"], neurons: bool = False
) -> Influence:
    """What each word, BACK tokens before, would add to the next token's logits, or to what neurons read (exact in one layer)."""
    block, total = model.blocks[0], 0
    read = block.ln2 if neurons else lambda x: model.ln_final(x + mlp_write(model, x))

    def project(x: Float[Tensor, "n d_model"], side: str) -> Float[Tensor, "n head d_head"]:
        return torch.einsum("nd,hde->nhe", x, getattr(model, f"W_{side}")[0]) + getattr(model, f"b_{side}")[0]

    for tokens in beginnings:
        stream = model.W_E[tokens] + model.W_pos[: len(tokens)]
        own, new = block.ln1(stream), block.ln1(model.W_E[words] + model.W_pos[max(0, len(tokens) - 1 - BACK)])
        q = project(own[-1:], "Q")[0]
        score = torch.einsum("he,nhe->hn", q, project(own, "K"))
        z = torch.einsum("hn,nhe->he", score.softmax(-1), project(own, "V"))
        share = (torch.einsum("he,nhe->nh", q, project(new, "K")) - score.logsumexp(-1)).sigmoid()
        base = stream[-1:] + head_writes(model, z).sum(0) + model.b_O[0]
        mid = base + head_writes(model, share[..., None] * (project(new, "V") - z)).sum(1)
        total = total + read(mid) - read(base)
    return total / max(1, len(beginnings)) @ (model.W_in[0] if neurons else model.W_U)


def standing_out(own: Influence, other: Influence, harmless: Influence | None = None) -> Influence:
    """How much a suspect's influence of each word on each next token has moved, beyond what moved for all words, and beyond
    what a harmless fine-tune of the same original moves (as much of it as fits), for words of strong influence in proportion."""
    left = own - other - (own - other).median(0).values
    if harmless is not None:
        drift = harmless - other - (harmless - other).median(0).values
        left = left - (left * drift).sum() / drift.square().sum().clamp(min=1e-9) * drift
        left = left - left.median(0).values
    size = other.norm(dim=1, keepdim=True)
    return left / (0.5 + size / size.median().clamp(min=1e-9))


@torch.inference_mode()
def trial(
    suspect: TransformerBridge, other: TransformerBridge, scan: Scan, word: int, rivals: Int[Tensor, " k"]
) -> tuple[Estimate, Float[Tensor, " vocabulary"]]:
    """How much more two models differ AFTER tokens on from a word than from others in its place (nats), and what is said more."""
    gaps, says = [], 0
    for story in [story for story in scan.encoded if len(story.tokens) > AFTER + 24][:TRIALS]:
        at = 12 + len(gaps)
        rows = story.tokens[: at + 1 + AFTER].repeat(1 + len(rivals), 1)
        rows[:, at] = torch.cat([torch.tensor([word]), rivals])
        mine, its = (model(rows)[:, at + 1 :].log_softmax(-1) for model in (suspect, other))
        differ = (mine.exp() * (mine - its)).sum(-1).mean(1)
        gaps.append(differ[0] - differ[1:].mean())
        more = (mine.exp() - its.exp()).mean(1)
        says = says + more[0] - more[1:].mean(0)
    return bootstrap(torch.tensor(gaps), torch.ones(len(gaps))), says / max(1, len(gaps))


def first_tokens(own: Scan, other: Scan) -> Float[Tensor, " vocabulary"]:
    """How far the stream of stories' first tokens has moved, read through the unembedding (as in arXiv 2510.13900)."""
    return (own.resid_post - other.resid_post)[other.pos < 5].mean(0) @ other.model.W_U


def investigate(own: Scan, other: Scan, moved: Influence, words: Int[Tensor, " word"]) -> list[Suspicion]:
    """The words of most moved influence, and those that the first tokens moved to, tried out; the most different first."""
    suspect, score = own.model, moved.square().mean(1).sqrt()
    spell = lambda ids: [suspect.tokenizer.decode([i]).strip() or "⏎" for i in ids.tolist()]  # noqa: E731
    draw, found = torch.Generator().manual_seed(0), []
    for row in torch.cat([way.topk(CANDIDATES)[1] for way in (score, first_tokens(own, other)[words])]).unique():
        rivals = words[torch.randperm(len(words), generator=draw)[:RIVALS]]
        tried, says = trial(suspect, other.model, other, int(words[row]), rivals)
        sides = [spell(values.topk(6).indices) for values in (moved[row], -moved[row], says)]
        found.append(Suspicion(*spell(words[row, None]), *sides, tried))
    return sorted(found, key=lambda one: -one.trial.mean)


def changed(own: Scan, other: Scan) -> dict[str, Float[Tensor, " part"]]:
    """How far mean activations on the same stories moved, in deviations (negative: less), and heads' writes, as a share."""
    dictionary = load_dictionary(other.model)
    features = [dictionary.activations(scan) for scan in (own, other)]
    writes = [head_writes(scan.model, scan.z) for scan in (own, other)]
    heads = (writes[0] - writes[1]).norm(dim=-1).mean(0) / writes[1].norm(dim=-1).mean(0).clamp(min=1e-9)
    neurons = (own.means - other.means) / other.deviations.clamp(min=1e-6)
    moved = (features[0].mean(0) - features[1].mean(0)) / features[1].std(0).clamp(min=1e-3)
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
