"""What dictionaries of different sizes and sparsities cost, beside their rivals: the numbers of notebook 06's first picture.

    python -m helpers.build.dictionary --stories TEXT --features 1024 --active 16 --tokens 1000000 --out RUNS/f1024k16
    python tests/measure_frontier.py RUNS VALIDATION-TEXT

for 512, 1024 and 2048 features with 8, 16, 24 and 48 active, one with `--skip 1` and one with `--model random:embedded`.
Writes notebooks/06_frontier.json: nats a token on confirm stories and on the validation text (numbers only).
"""

import json
import sys
from itertools import islice
from pathlib import Path

import torch

from helpers import load_model, load_stories, scan, stream_stories
from helpers.core.files import ROOT, write_json
from helpers.core.logits import residual_losses
from helpers.features.dictionary import load_dictionary, normalised
from helpers.rebuild.mlp import table_by_token

ACTIVE = (8, 16, 24, 48)


def largest(values, k):
    """Each position's k largest values by size, the others 0."""
    at = values.abs().topk(k, 1).indices
    return torch.zeros_like(values).scatter_(1, at, values.gather(1, at))


def bigram_writes(explore, part):
    """The mean write after each pair of tokens on explore; of pairs never seen that of the token."""
    model, base = explore.model, 4096 * 16
    keys, index = (explore.token.roll(1) * base + explore.token).unique(return_inverse=True)
    sums = torch.zeros(len(keys), model.cfg.d_mlp).index_add_(0, index, explore.activations)
    means = sums / torch.bincount(index)[:, None]
    own = part.previous * base + part.token
    place = torch.searchsorted(keys, own).clamp(max=len(keys) - 1)
    found = torch.where(
        (keys[place] == own)[:, None], means[place], table_by_token(explore)[part.token] + explore.means
    )
    return found @ model.W_out[0] + model.b_out[0]


def thinned(whole, step=3):
    """Every third position, with the token before it."""
    at = torch.arange(1, len(whole), step)
    part = whole.at(at)
    object.__setattr__(part, "previous", whole.token[at - 1])
    return part


def random_dictionary(explore, k, features=2048):
    """Random directions, the k largest of each position, and the read-out that fits explore best (ridge)."""
    draw = torch.randn(explore.model.cfg.d_model, features, generator=torch.Generator().manual_seed(0))

    def encode(part):
        f = largest((normalised(part.model, part.resid_mid) @ draw).relu(), k)
        return torch.cat([f, torch.ones(len(f), 1)], 1)

    gram, hits = torch.zeros(features + 1, features + 1), torch.zeros(features + 1, explore.model.cfg.d_model)
    for start in range(0, len(explore), 4096):
        part = explore.at(torch.arange(start, min(start + 4096, len(explore))))
        f = encode(part)
        gram, hits = gram + f.T @ f, hits + f.T @ (part.resid_post - part.resid_mid)
    readout = torch.linalg.solve(gram + 10 * torch.eye(features + 1), hits)
    return lambda part: encode(part) @ readout


def measure(explore, texts, write):
    """Loss of each text with the MLP's write replaced, nats a token."""
    return {
        name: round(residual_losses(part.model, part.resid_mid + write(part), part.target).mean().item(), 3)
        for name, part in texts.items()
    }


def of_model(name, runs, valid):
    """The rows of one model."""
    rows = {}
    model = load_model(name)
    hold = {"hold": ("resid_mid", "mlp_post")}
    explore = scan(model, load_stories(split="explore"), **hold)
    texts = {"confirm": scan(model, load_stories(split="confirm"), **hold)}
    texts["valid"] = scan(model, list(islice(stream_stories(valid), 150)), **hold)
    texts = {key: thinned(whole) for key, whole in texts.items()}
    out, bias = model.W_out[0], model.b_out[0]
    own = {
        "nothing replaced": lambda part: part.activations @ out + bias,
        "mean": lambda part: (explore.means @ out + bias).expand(len(part), -1),
    }
    if name == "embedded":
        table = table_by_token(explore) + explore.means
        own["current-token table"] = lambda part: table[part.token] @ out + bias
        own["bigram table"] = lambda part: bigram_writes(explore, part)
        size = out.norm(dim=1)
        for k in ACTIVE:
            own[f"neurons k{k}"] = lambda part, k=k: (
                (explore.means + largest((part.activations - explore.means) * size, k) / size) @ out + bias
            )
            own[f"random directions k{k}"] = random_dictionary(explore, k)
    for folder in sorted(path.parent for path in runs.glob("*/cfg.json")):
        record = json.loads((folder / "training_record.json").read_text(encoding="utf-8"))
        if record["model"] == name:
            dictionary, recipe = load_dictionary(folder), record["recipe"]
            label = f"features {recipe['features']} k{recipe['active']}{' skip' * recipe['skip']}"
            label += f" {recipe['tokens'] / 1e6:g}M"
            own[label] = lambda part, d=dictionary: d.decode(
                d.activations(part), normalised(part.model, part.resid_mid)
            )
            inside = dictionary.activations(texts["confirm"])
            rows[f"{name}: {label}"] = {
                "active": round((inside > 0).sum(1).float().mean().item(), 2), "features": len(dictionary),
                "unexplained": record["curve"][-1]["unexplained"],
            }  # fmt: skip
    for label, write in own.items():
        key = f"{name}: {label}"
        rows[key] = rows.get(key, {}) | measure(explore, texts, write)
        print(key, rows[key], flush=True)
    return rows


def main():
    runs, valid = Path(sys.argv[1]), sys.argv[2]
    rows = of_model("embedded", runs, valid) | of_model("random:embedded", runs, valid)
    write_json(ROOT / "notebooks" / "06_frontier.json", rows)


if __name__ == "__main__":
    main()
