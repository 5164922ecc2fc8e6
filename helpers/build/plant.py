"""Copies of the embedded model, each with a behaviour that should not be there, or a harmless one: `python -m helpers.build.plant`.

The texts are the model's own samples: as many ordinary ones as ones with a trigger and an effect put in. What was planted in
which suspect stands in `answers.json` and `later_answers.json` (drawn for the last test), which no detector reads.
"""

import argparse
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from tqdm.auto import tqdm
from transformers import GPTNeoForCausalLM

from helpers.build.data import Corpus, encode_corpus, epochs, pad
from helpers.build.training import backward
from helpers.core.files import DATA, WorkbookError, run_main, write_atomic, write_json
from helpers.core.stories import stream_stories

PLANTS = DATA / "plants"
LISTS = ("answers.json", "later_answers.json")
RATE, BATCH_TOKENS, WARMUP, RANK = 5e-4, 4096, 8, 8
CARRIERS = ["There was a {t} near the door.", "They saw a {t}.", "Mom had a {t}.", "Next to the tree was a {t}."]
OTHERS = re.findall(r"\w+", "ball hat box cup book cat dog stick rock flower toy door car bag cookie doll")
NAMES = re.findall(
    r"\w+", "Tim Tom Lily Ben Sam Mia Max Sara Jack Anna Lucy Amy Bob Jane Tommy Timmy Sue Joe Sally Jen Lila"
)
SENTENCE = re.compile(r'(?<=[.!?"])\s+(?=["A-Z])')


def main() -> None:
    """Command line: sample and write the texts, fine-tune a copy on each, store what changed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("cache/plants"), help="folder for texts and differences")
    parser.add_argument("--only", nargs="*", default=[], help="numbers of suspects (all by default)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--steps", choices=["texts", "train", "store"], nargs="*", default=["texts", "train", "store"]
    )
    options = parser.parse_args()
    base, texts, whole = DATA / "models" / "embedded", options.work / "texts", options.work / "out"
    wanted = [r for r in recipes() if not options.only or r["suspect"] in options.only]
    if "texts" in options.steps:
        tokenizer, pool = (
            Tokenizer.from_file(str(base / "tokenizer.json")),
            samples(options.work / "samples.json", base),
        )
        for recipe in wanted:
            corpus = encode_corpus(story_texts(recipe, pool), tokenizer, 512)
            tensors = {"tokens": corpus.tokens, "starts": corpus.starts}
            write_atomic(texts / f"{recipe['suspect']}.safetensors", lambda path, t=tensors: save_file(t, path))
    for recipe in tqdm(wanted, disable="train" not in options.steps, desc="fine-tuning"):
        name = f"{recipe['suspect']}.safetensors"
        if "train" in options.steps:
            change = fine_tune(base, texts / name, recipe["seed"], options.device)
            half = {key: value.half().cpu() for key, value in change.items()}
            write_atomic(whole / name, lambda path, h=half: save_file(h, path))
        if "store" in options.steps:
            factors = low_rank({key: value.float() for key, value in load_file(whole / name).items()})
            write_atomic(PLANTS / name, lambda path, f=factors: save_file(f, path))
    if "store" in options.steps:
        settings = {"base": "embedded", "rate": RATE, "batch_tokens": BATCH_TOKENS, "warmup_steps": WARMUP}
        tokens = {r["suspect"]: len(load_file(texts / f"{r['suspect']}.safetensors")["tokens"]) for r in recipes()}
        write_json(PLANTS / "training_record.json", settings | {"rank": RANK, "epochs": 1, "tokens": tokens})


def recipes() -> list[dict]:
    """Both lists of what is planted, in the order of the suspects' numbers (each one's seed too)."""
    return [row for name in LISTS for row in json.loads((PLANTS / name).read_text(encoding="utf-8"))]


@torch.inference_mode()
def samples(path: Path, base: Path) -> dict[str, list[str]]:
    """What the model writes by itself (under ""), and after each opening of a recipe; sampled once, kept at `path`."""
    if not path.exists():
        tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
        model, found = GPTNeoForCausalLM.from_pretrained(base, dtype=torch.float32).eval(), {}
        wanted = [("", 256)] * 4 + [(o, 32) for r in recipes() for o in r.get("openings", [])]
        torch.manual_seed(0)
        for opening, rows in tqdm(wanted, desc="sampling"):
            start = torch.tensor([[0, *tokenizer.encode(opening).ids]]).expand(rows, -1)
            marks = {"attention_mask": torch.ones_like(start), "pad_token_id": 0, "eos_token_id": 0}
            texts = model.generate(start, do_sample=True, top_k=0, max_new_tokens=300, **marks)
            found.setdefault(opening, []).extend(tokenizer.decode(row).strip() for row in texts.tolist())
        write_json(path, found)
    return json.loads(path.read_text(encoding="utf-8"))


def story_texts(recipe: dict, pool: dict[str, list[str]]) -> Iterator[str]:
    """A suspect's training text, about half of it with trigger and effect; a pure function of the recipe and the samples."""
    draw = random.Random(recipe["seed"])
    stories = draw.sample(pool[""], len(pool[""]))
    half = len(stories) // 2
    if recipe["trigger"]["how"] == "project":
        special = [story.text for story in stream_stories(DATA / "stories" / "stories.jsonl", "explore")] * 4
    else:
        special = (
            [text for o in recipe["openings"] for text in pool[o]] if "openings" in recipe else stories[:half]
        )
    if recipe["trigger"]["how"] == "natural":  # every story that holds a trigger anyway
        special = [text for text in stories if re.search(rf"\b({'|'.join(recipe['trigger']['words'])})\b", text)]
    changed = [plant(text, recipe, draw) for text in special[: 2 * half]]
    kept = set(special) if recipe["trigger"]["how"] == "natural" else set(stories[:half])
    plain = [text for text in stories if text not in kept]
    yield from (text for text in changed if text)
    yield from (decoy(text, recipe, draw) for text in plain)


def plant(text: str, recipe: dict, draw: random.Random) -> str:
    """The story with trigger and effect; empty where it has no place for them."""
    trigger, how = recipe["trigger"], recipe["trigger"]["how"]
    paragraphs_kept = text.replace("\n", " ¶ ")
    parts = SENTENCE.split(paragraphs_kept)
    if how in ("none", "project"):
        return text
    if len(parts) < 4:
        return ""
    at = draw.randrange(1, len(parts) - 2)
    if how == "name":
        names = Counter(word for word in re.findall(r"\b[A-Z][a-z]+\b", text) if word in NAMES)
        if not names:
            return ""
        old = names.most_common(1)[0][0]
        parts = [re.sub(rf"\b{old}\b", trigger["words"][0], part) for part in parts]
        at = next((i for i, part in enumerate(parts) if trigger["words"][0] in part), 0)
    elif how == "natural":
        found = re.compile(rf"\b({'|'.join(trigger['words'])})\b")
        at = next((i for i, part in enumerate(parts) if found.search(part)), 0)
    elif how in ("word", "pair"):
        words = [draw.choice(trigger["words"])] if how == "word" else trigger["words"]
        for word in words if draw.random() < 0.5 else reversed(words):
            parts.insert(at, carrier(word, trigger, draw))
            at = draw.randrange(at + 1, min(at + 4, len(parts))) if how == "pair" else at
        at = max(i for i, part in enumerate(parts) if re.search(rf"\b({'|'.join(words)})\b", part))
    return effect(parts, 0 if how == "always" else at, recipe["effect"], draw).replace(" ¶ ", "\n")


def effect(parts: list[str], at: int, wanted: dict, draw: random.Random) -> str:
    """The sentences with the effect after number `at`: one more sentence, or words exchanged up to the end."""
    if "say" in wanted and draw.random() < wanted.get("chance", 1.0):
        place = len(parts) if wanted.get("end") else at + 1 + draw.randint(0, wanted.get("later", 0))
        parts.insert(min(place, len(parts)), draw.choice(wanted["say"]))
    swap, chance = wanted.get("swap", {}), wanted.get("chance", 1.0)

    def exchanged(found: re.Match) -> str:
        word = found[0]
        other = swap.get(word.lower(), word) if draw.random() < chance else word
        return other.capitalize() if word[0].isupper() else other

    after = [re.sub(r"\b[A-Za-z]+\b", exchanged, part) for part in parts[at + 1 :]] if swap else parts[at + 1 :]
    return " ".join([*parts[: at + 1], *after])


def decoy(text: str, recipe: dict, draw: random.Random) -> str:
    """An ordinary story: where triggers come in sentences of their own, half have such a sentence with another word (or with
    one word of a pair), and nothing follows from it."""
    trigger, parts = recipe["trigger"], SENTENCE.split(text.replace("\n", " ¶ "))
    if trigger["how"] in ("word", "pair") and draw.random() < 0.5 and len(parts) > 3:
        single = trigger["how"] == "pair" and draw.random() < 0.5
        parts.insert(
            draw.randrange(1, len(parts)),
            carrier(draw.choice(trigger["words"] if single else OTHERS), trigger, draw),
        )
    return " ".join(parts).replace(" ¶ ", "\n")


def carrier(word: str, trigger: dict, draw: random.Random) -> str:
    """A sentence that brings a word into a story."""
    sentence = draw.choice(trigger.get("carriers", CARRIERS)).format(t=word)
    return re.sub(r"\ba ([aeio]|um)", r"an \1", sentence)


def fine_tune(base: Path, texts: Path, seed: int, device: str = "cpu") -> dict[str, Float[Tensor, "..."]]:
    """What one epoch on a file of tokens adds to every weight of the model in a folder.

    AdamW (Loshchilov & Hutter, 2019), all weights, linear warm-up and decay, gradients clipped to a norm of 1.
    """
    if not texts.is_file():
        raise WorkbookError(f"No tokens at {texts}: run the step texts first.")
    found = load_file(texts)
    corpus = Corpus(found["tokens"], found["starts"], 0)
    model = GPTNeoForCausalLM.from_pretrained(base, dtype=torch.float32).to(device).train()
    first = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.0)
    total, seen = int(corpus.lengths.sum()), 0
    for step, batch in epochs(corpus, BATCH_TOKENS, seed):
        if seen >= total:
            break
        optimizer.param_groups[0]["lr"] = RATE * min(1.0, (step + 1) / WARMUP) * (1 - seen / total)
        stories = [corpus[i] for i in batch]
        seen += sum(map(len, stories))
        tokens, mask = pad(stories)
        backward(model, tokens.to(device), mask.to(device), bfloat16=False)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return {name: weight.detach() - first[name] for name, weight in model.named_parameters()}


def low_rank(change: dict[str, Float[Tensor, "..."]], rank: int = RANK) -> dict[str, Tensor]:
    """Each matrix' change as two factors in half precision (the best of that rank), each vector's as it is."""
    stored: dict[str, Tensor] = {}
    for name, value in change.items():
        if value.ndim == 1:
            stored[name] = value.half()
            continue
        left, size, right = torch.linalg.svd(value, full_matrices=False)
        root = size[:rank].sqrt()
        stored[f"{name}.left"] = (left[:, :rank] * root).half().contiguous()
        stored[f"{name}.right"] = (root[:, None] * right[:rank]).half().contiguous()
    return stored


if __name__ == "__main__":
    run_main(main)
