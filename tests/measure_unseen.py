"""How well models predict pairs of words that their text never had: the numbers of notebook 04's last test.

    python tests/withhold_pairs.py --data TEXT --out RUN/text
    python -m helpers.build.training --data RUN/text/KIND.jsonl --valid VALIDATION --tokenizer TOKENIZER \
        --tokens 5000000 --seed SEED --out RUN/models/KIND-SEED          # KIND withheld or control, SEED 1 to 3
    python tests/measure_unseen.py RUN VALIDATION

Judged on the stories set aside and the validation text: where a pair comes, where its second word comes after another
word of the same frames, and where another word comes after its first. Writes helpers/data/unseen.safetensors: numbers,
and the pairs; no text.
"""

import collections
import itertools
import json
import random
import re
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.cluster import KMeans
from sklearn.decomposition import TruncatedSVD
from tqdm.auto import tqdm
from withhold_pairs import FRAMES, WORD, classes_of

from helpers import heads, load_model, load_stories, neurons, scan, walk
from helpers.build.ngrams import NGrams
from helpers.core.contexts import token_classes
from helpers.core.files import DATA, write_atomic
from helpers.core.parts import without
from helpers.core.stories import Story, stream_texts
from helpers.neurons.ablation import mean_effects
from helpers.studies import composition as parts

PIECE = re.compile(r"[a-z]+(?:'[a-z]+)*|\n|[^\sa-z]", re.IGNORECASE)
MOST = 40  # places of each pair where its words come in other company
CLUSTERS, TOPIC, REPEAT = (0, 30, 60, 120, 250, 500), (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8), (0.0, 1.0, 2.0, 3.0)
RANDOM_SETS = 4


def places(texts, pairs):
    """(sort, pair, story, start, end) of words to predict: 0 the pair, 1 its word after another, 2 another after its first."""
    of_word, of_before = {p["word"]: i for i, p in enumerate(pairs)}, collections.defaultdict(list)
    for i, pair in enumerate(pairs):
        of_before[pair["before"]].append(i)
    found, others = [], collections.defaultdict(list)
    for s, text in enumerate(texts):
        hits = list(WORD.finditer(text.lower()))
        for one, two in itertools.pairwise(hits):
            if text[one.end() : two.start()] != " ":
                continue
            pair, row = of_word.get(two[0]), (s, two.start(), two.end())
            if pair is not None and pairs[pair]["before"] == one[0]:
                found.append((0, pair, *row))
            elif pair is not None and one[0] in FRAMES[pairs[pair]["kind"]][0].split():
                others[1, pair].append(row)
            elif pair is None:
                for i in of_before.get(one[0], ()):
                    others[2, i].append(row)
    for (sort, pair), rows in others.items():
        found += [(sort, pair, *row) for row in random.Random(pair).sample(rows, min(MOST, len(rows)))]
    return sorted(found)


@torch.inference_mode()
def log_probabilities(model, texts, rows):
    """ln p of each place's word, whole: its tokens, and that the token after it begins something else."""
    tokenizer = model.tokenizer.backend_tokenizer
    spelled = [tokenizer.decode([i], skip_special_tokens=False) for i in range(model.cfg.d_vocab)]
    ends = torch.tensor(
        [not (text[:1].isalpha() or text[:1] in "'\ufffd") or i == 0 for i, text in enumerate(spelled)]
    )
    raw, by_story = model.original_model, collections.defaultdict(list)
    for i, row in enumerate(rows):
        by_story[row[2]].append(i)
    out = torch.full((len(rows),), float("nan"))
    for s, mine in by_story.items():
        encoding = tokenizer.encode(texts[s], add_special_tokens=False)
        ids = [0, *encoding.ids][: model.cfg.n_ctx]
        log_p = raw(torch.tensor([ids])).logits[0].log_softmax(-1)
        starts = {offset[0] + (texts[s][offset[0]] == " "): k for k, offset in enumerate(encoding.offsets)}
        for i in mine:
            _, _, _, start, end = rows[i]
            first, last = starts.get(start), starts.get(end, starts.get(end + 1))
            if first is None or last is None or last >= len(ids) - 1:
                continue
            own = sum(log_p[k, ids[k + 1]] for k in range(first, last))
            out[i] = own + log_p[last, ends].logsumexp(0)
    return out


def moved(texts, rows):
    """The pairs' places after another story: of each its own sentence up to the word, behind the opening of a story in which
    another pair comes and this word does not; where its own story has no opening, none is given (start -1)."""
    openings = [
        max((m.end() for m in re.finditer(r"[.!?][\"']?\s+", texts[s][: row[0]])), default=0)
        for _, _, s, *row in rows
    ]
    made, places, count = [], [], len(rows)
    for i, (sort, pair, s, start, end) in enumerate(rows):
        word = texts[s][start:end].lower()
        for step in range(count // 2, count // 2 + 200):
            j = (i + step) % count
            other = texts[rows[j][2]][: openings[j]]
            if rows[j][1] != pair and len(other) >= 100 and word not in WORD.findall(other.lower()):
                break
        shift = len(other) - openings[i]
        made.append(other + texts[s][openings[i] :])
        places.append(
            (sort, pair, i, start + shift, end + shift) if openings[i] >= 100 else (sort, pair, i, -1, -1)
        )
    return made, places


class Tables:
    """Everything counted on one text: words by number, n-grams, clusters of words, and which words share stories."""

    def __init__(self, texts, least=3):
        pieces = [PIECE.findall(text.lower()) for text in texts]
        counts = collections.Counter(piece for text in pieces for piece in text)
        self.words = ["<end>", "<rare>", *sorted(piece for piece, n in counts.items() if n >= least)]
        self.number = {word: i for i, word in enumerate(self.words)}
        encoded = [self.encode(text) for text in pieces]
        starts = torch.tensor([0, *(len(text) for text in encoded)]).cumsum(0)[:-1]
        self.tokens, size = torch.cat(encoded), len(self.words)
        self.ngrams = NGrams(self.tokens, starts, size)
        self.counts = torch.bincount(self.tokens, minlength=size).float()
        self.after = np.zeros((size, size), dtype=np.float32)
        np.add.at(self.after, (self.tokens[:-1].numpy(), self.tokens[1:].numpy()), 1)
        both = np.zeros((size, size), dtype=np.float32)
        for text in encoded:
            here = np.unique(text[1:].numpy())
            both[np.ix_(here, here)] += 1
        alone = np.diag(both)
        # how much likelier a story's word makes another word of the same story, ln; little seen counts little
        chance = np.outer(alone, alone) / len(encoded)
        self.together = torch.from_numpy(np.log((both + 5) / (chance + 5)).astype(np.float32))

    def encode(self, pieces):
        return torch.tensor([0, *(self.number.get(piece, 1) for piece in pieces)])

    def clusters(self, count):
        """Words dealt to groups of alike neighbours (k-means on an SVD of association with the words beside them)."""
        common = self.counts.topk(500).indices.numpy()
        sides = np.concatenate([self.after[:, common], self.after.T[:, common]], 1)
        rates = sides / sides.sum(1, keepdims=True).clip(1) / (sides.sum(0) / sides.sum()).clip(1e-9)
        space = TruncatedSVD(50, random_state=0).fit_transform(np.log1p(rates))
        space /= np.linalg.norm(space, axis=1, keepdims=True).clip(1e-9)
        weights = np.sqrt(self.counts.numpy() + 1)
        return torch.from_numpy(
            KMeans(count, n_init=1, random_state=0).fit(space, sample_weight=weights).labels_
        ).long()

    def class_bigram(self, kinds):
        """p(class of the next word | word before), smoothed by the class of the word before: [word class]."""
        one_hot = torch.nn.functional.one_hot(kinds).float()
        of_word = torch.from_numpy(self.after) @ one_hot
        of_class = one_hot.T @ of_word + 0.1
        of_class = (of_class / of_class.sum(1, keepdim=True))[kinds]
        return (of_word + 2 * of_class) / (of_word.sum(1, keepdim=True) + 2)


def judged_by_tables(tables, texts, rows, tagged):
    """ln p of each place's word by every table: n-grams, then class and topic in every setting."""
    fixed = torch.zeros(len(rows), 3)
    settings = [(c, t, r) for c in CLUSTERS for t in TOPIC for r in REPEAT]
    by_setting = torch.zeros(len(rows), len(settings))
    before = []
    for i, (_, _, s, start, end) in enumerate(rows):
        story = tables.encode([*PIECE.findall(texts[s][:start].lower()), texts[s][start:end].lower()])
        before.append(story)
        fixed[i] = -tables.ngrams.losses(story[-40:] if len(story) > 40 else story)[:, -1]
    functional = tables.counts.topk(120).indices  # words such as "the" say nothing of a topic
    for c in CLUSTERS:
        kinds = tagged if c == 0 else tables.clusters(c)
        next_class, column = tables.class_bigram(kinds), CLUSTERS.index(c) * len(TOPIC) * len(REPEAT)
        for i, story in enumerate(tqdm(before, desc=f"{c or 'parts of speech'} classes")):
            word, last = int(story[-1]), int(story[-2])
            members = (kinds == kinds[word]).nonzero()[:, 0]
            context = story[1:-1].unique()
            topical = context[~torch.isin(context, functional) & (context > 1)]
            topic = tables.together[topical][:, members].sum(0) if len(topical) else torch.zeros(len(members))
            stood, base = torch.isin(members, context).float(), tables.counts[members].clamp(min=0.1).log()
            place, gate = int((members == word).nonzero()), next_class[last, kinds[word]].log()
            grid = torch.stack([base + t * topic + r * stood for t in TOPIC for r in REPEAT])
            by_setting[i, column : column + len(grid)] = grid.log_softmax(1)[:, place] + gate
    return fixed, by_setting, settings


@torch.inference_mode()
def ablated(model, texts, rows):
    """ln p of the first token of the pairs' words [place set]: as it is, without the last-words set, the story set, random ones."""
    explore = scan(model, load_stories(split="explore"))
    near = parts.near_attention(walk(model, load_stories(split="explore")[:60]), model.cfg.n_heads)
    fetching = heads((near <= 0.5).nonzero()[:, 0], explore)
    classes = token_classes(explore.context, model.cfg.d_vocab)
    frequency = torch.bincount(explore.target, minlength=model.cfg.d_vocab).float()
    hears = parts.reads_here(parts.Inputs.of(explore, fetching))
    ranks = [v.argsort().argsort() for v in (hears, parts.writes_classes(model, classes, frequency))]
    score = torch.stack([sum(ranks), -sum(ranks)]).float()
    chosen = torch.randperm(len(explore), generator=torch.Generator().manual_seed(0))[:6000]
    single, size = mean_effects(explore.at(chosen))[:, 0], model.cfg.d_mlp // 4
    sets = [
        *parts.stratified_sets(score, single, size),
        *(c[0] for c in parts.random_couples(single, size, RANDOM_SETS)),
    ]
    out = []
    for _, _, s, start, end in tqdm(rows, desc="ablating"):
        text = texts[s][: start - 1]
        one = scan(model, [Story(text[-1200:] + ".")])
        one = one.at(torch.tensor([len(one) - 1]))
        target = model.tokenizer.backend_tokenizer.encode(texts[s][start - 1 : end], add_special_tokens=False).ids[
            0
        ]
        ends = torch.cat([one.resid_post, *(without(one, neurons(part, explore)) for part in sets)])
        out.append(model.unembed(model.ln_final(ends[None]))[0].log_softmax(-1)[:, target])
    return torch.stack(out)


def main():
    run, valid = Path(sys.argv[1]), sys.argv[2]
    about = json.loads((run / "text" / "pairs.json").read_text(encoding="utf-8"))
    texts = [*stream_texts(str(run / "text" / "judge.jsonl")), *stream_texts(valid)]
    rows = places(texts, about["pairs"])
    names = [f"{kind}-{seed}" for kind in ("withheld", "control") for seed in (1, 2, 3)]
    models = {
        name: load_model(str(run / "models" / name))
        for name in names
        if (run / "models" / name / "model.safetensors").exists()
    }
    log_p = torch.stack(
        [log_probabilities(model, texts, rows) for model in tqdm(models.values(), desc="models")], 1
    )
    kept = log_p.isfinite().all(1)
    rows, log_p = [row for row, good in zip(rows, kept.tolist(), strict=True) if good], log_p[kept]
    tables = Tables(list(stream_texts(str(run / "text" / "withheld.jsonl"))))
    lemmas, classes = classes_of("lemma"), classes_of("universal")
    for pair in about[
        "pairs"
    ]:  # what the cut text still has: of the pair nothing, of other forms of its word perhaps
        row, lemma = tables.after[tables.number[pair["before"]]], lemmas.get(pair["word"])
        pair["seen"] = int(row[tables.number[pair["word"]]])
        pair["forms"] = int(sum(row[i] for i, word in enumerate(tables.words) if lemmas.get(word) == lemma))
    tags = sorted(set(classes.values()))
    tagged = torch.tensor([tags.index(classes[w]) if w in classes else len(tags) for w in tables.words])
    fixed, by_setting, settings = judged_by_tables(tables, texts, rows, tagged)
    pair_rows = [row for row in rows if row[0] == 0]
    strange, strange_rows = moved(texts, pair_rows)
    elsewhere = torch.stack([log_probabilities(model, strange, strange_rows) for model in models.values()], 1)
    cut = torch.stack([ablated(model, texts, pair_rows) for model in models.values()], 1)
    columns = torch.tensor([row[:3] for row in rows])
    tensors = {
        "sort": columns[:, 0].to(torch.int8),
        "pair": columns[:, 1].to(torch.int16),
        "story": columns[:, 2].to(torch.int16),
    }
    pairs_only = columns[:, 0] == 0
    means = by_setting[pairs_only].mean(0)
    plain = [i for i, (_, t, r) in enumerate(settings) if t == r == 0]
    best, best_plain = int(means.argmax()), plain[int(means[plain].argmax())]
    of_table = judged_by_tables(tables, strange, strange_rows, tagged)[1][:, best]
    elsewhere = torch.cat([elsewhere, of_table.where(elsewhere[:, 0].isfinite(), torch.nan)[:, None]], 1)
    tensors |= {
        "models": log_p.half(),
        "tables": torch.cat([fixed, by_setting[:, [best_plain, best]]], 1).half(),
        "ablated": cut.half(),
        "elsewhere": elsewhere.half(),
    }
    records = {
        name: json.loads((run / "models" / name / "training_record.json").read_text(encoding="utf-8"))["curve"][-1]
        for name in models
    }
    facts = about | {
        "models": list(models), "tables": ["unigram", "Kneser-Ney bigram", "Kneser-Ney trigram", "class bigram", "class and topic"],
        "settings": {"tried": len(settings), "class bigram": settings[best_plain], "class and topic": settings[best]},
        "ablated": ["nothing", "last-words set", "story set", *(f"random set {i + 1}" for i in range(RANDOM_SETS))],
        "loss": {name: record["valid"] for name, record in records.items()},
        "tokens": {name: record["tokens"] for name, record in records.items()},
    }  # fmt: skip
    write_atomic(
        DATA / "unseen.safetensors",
        lambda path: save_file(
            {k: v.contiguous() for k, v in tensors.items()}, path, {"about": json.dumps(facts)}
        ),
    )
    for name, column in zip(
        [*models, *facts["tables"]], torch.cat([log_p, tensors["tables"].float()], 1).T, strict=True
    ):
        print(f"{name:20}", *(f"{column[columns[:, 0] == sort].mean():7.2f}" for sort in (0, 1, 2)))
    print({p["word"]: p["forms"] for p in about["pairs"] if p["forms"]})
    print(
        facts["settings"],
        {p["word"]: p["seen"] for p in about["pairs"] if p["seen"]},
        int(pairs_only.sum()),
        "places",
    )


if __name__ == "__main__":
    main()
