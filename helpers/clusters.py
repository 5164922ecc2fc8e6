"""Clusters of neurons by what they read and write."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from helpers.rule_effects import CLASSWISE, Effects
from helpers.stories import CLASSES


def features(
    effects: dict[str, Effects],
) -> tuple[Float[Tensor, "neuron read"], Float[Tensor, "neuron write"], list[str]]:
    """Standardised effect sizes on both sides: of every kind's first way, and of every class that is there."""
    names, reads, writes = [], [], []
    for name, effect in effects.items():
        ways = range(len(CLASSES)) if name == CLASSWISE else range(min(1, effect.read.shape[1]))  # no name, no way
        for way in ways:
            read, write = effect.read[:, way], effect.write[:, way]
            if read.std() > 1e-6 and write.std() > 1e-6:
                names.append(CLASSES[way] if name == CLASSWISE else name)
                reads.append(read / read.std())
                writes.append(write / write.std())
    return torch.stack(reads, 1), torch.stack(writes, 1), names


def cluster(
    values: Float[Tensor, "k feature"], clusters: int, seed: int = 0, rounds: int = 30, starts: int = 4
) -> tuple[Int[Tensor, " k"], float]:
    """k-means with several k-means++ starts (Arthur & Vassilvitskii, 2007): labels, and the share of variance between clusters."""
    generator, best = torch.Generator().manual_seed(seed), (None, -1.0)
    total = (values - values.mean(0)).square().sum()
    for _ in range(starts):
        centres = values[torch.randint(len(values), (1,), generator=generator)]
        while len(centres) < clusters:
            weight = torch.cdist(values, centres).amin(1).square()
            centres = torch.cat([centres, values[torch.multinomial(weight, 1, generator=generator)]])
        for _ in range(rounds):
            label = torch.cdist(values, centres).argmin(1)
            one_hot = torch.nn.functional.one_hot(label, clusters).float()
            centres = one_hot.T @ values / one_hot.sum(0).clamp(min=1)[:, None]
        share = 1 - ((values - centres[label]).square().sum() / total).item()
        best = max(best, (label, share), key=lambda pair: pair[1])
    return best


def gaussian_like(values: Float[Tensor, "k feature"], seed: int = 0) -> Float[Tensor, "k feature"]:
    """As many draws from one normal distribution with the same covariance: correlated features, and no groups."""
    size, vectors = torch.linalg.eigh(torch.cov(values.T.double()))
    noise = torch.randn(values.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    return (noise * size.clamp(min=0).sqrt() @ vectors.T).float()


def centres(label: Int[Tensor, " k"], values: Float[Tensor, "k feature"]) -> Float[Tensor, "cluster feature"]:
    """Mean of every cluster against the mean of all, the largest cluster first; empty clusters are left out."""
    order = _by_size(label)
    return torch.stack([(values - values.mean(0))[label == i].mean(0) for i in order])


def cluster_names(
    label: Int[Tensor, " k"],
    read: Float[Tensor, "cluster feature"],
    write: Float[Tensor, "cluster feature"],
    names: list[str],
) -> list[str]:
    """Size of every cluster, and the two features that it fires on and the two that it supports most, in the order of
    `centres`."""
    two = lambda row: " + ".join(names[i] for i in row.topk(min(2, len(row))).indices.tolist())  # noqa: E731
    rows = zip(_by_size(label), read, write, strict=True)
    return [f"{int((label == i).sum())}: {two(fires)} → {two(supports)}" for i, fires, supports in rows]


def _by_size(label: Int[Tensor, " k"]) -> list[int]:
    sizes = torch.bincount(label)
    return [i for i in sizes.argsort(descending=True, stable=True).tolist() if sizes[i]]
