"""One streaming pass over a corpus: the numbers are right, parts merge to the whole, examples are real."""

import pytest
import torch

from helpers.core.scan import gather, walk
from helpers.neurons.statistics import CONTEXT, EDGES, STRONGEST, _strongest, collect
from helpers.studies.tour import UNIVERSAL


@pytest.fixture(scope="module")
def some(stories):
    return stories[:24]


@pytest.fixture(scope="module")
def themes(some):
    return sorted({story.theme for story in some})


@pytest.fixture(scope="module")
def stats(model, some, themes):
    return collect(model, some, themes)


@pytest.fixture(scope="module")
def activations(model, some):
    return gather(model, some)[1].double()


def test_moments_are_those_of_the_activations(stats, activations):
    moments = stats.moments()
    assert stats.count == len(activations)
    torch.testing.assert_close(moments["mean"], activations.mean(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(moments["deviation"], activations.std(0, unbiased=False), atol=1e-5, rtol=1e-4)
    z = (activations - activations.mean(0)) / activations.std(0, unbiased=False)
    torch.testing.assert_close(moments["skew"], z.pow(3).mean(0), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(moments["kurtosis"], z.pow(4).mean(0) - 3, atol=1e-2, rtol=1e-3)
    torch.testing.assert_close(moments["above zero"], (activations > 0).double().mean(0))


def test_parts_merge_to_one_pass(model, some, themes, stats):
    parts = collect(model, some[:10], themes)
    parts.merge(collect(model, some[10:], themes))
    for name, values in stats.moments().items():
        torch.testing.assert_close(parts.moments()[name], values, atol=1e-4, rtol=1e-4)
    for name, share in stats.explained().items():
        torch.testing.assert_close(parts.explained()[name], share, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(parts.top, stats.top, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(parts.value, stats.value, atol=1e-5, rtol=1e-5)


def test_the_batch_size_makes_no_difference(model, some, themes, stats):
    small = collect(model, some, themes, positions=600)
    torch.testing.assert_close(small.top, stats.top, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(small.value, stats.value, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        small.explained()["previous token"], stats.explained()["previous token"], atol=1e-4, rtol=1e-4
    )


def test_explained_variance_is_the_adjusted_share_between_groups(model, some, stats):
    context, activations, _ = gather(model, some)
    values = activations.double()
    for name, groups in {"current token": context.token, "part of speech": context.tag}.items():
        kept = (
            groups >= 0 if name == "current token" else torch.tensor([0 <= tag < len(UNIVERSAL) for tag in groups])
        )
        ids, inverse, counts = torch.unique(groups[kept], return_inverse=True, return_counts=True)
        means = torch.zeros(len(ids), values.shape[1], dtype=torch.double).index_add_(0, inverse, values[kept])
        means /= counts[:, None]
        between = ((means[inverse] - values.mean(0)) ** 2).mean(0) / values.var(0, unbiased=False)
        n = int(kept.sum())
        expected = 1 - (1 - between) * (n - 1) / (n - len(ids))
        torch.testing.assert_close(stats.explained()[name], expected, atol=2e-3, rtol=1e-2)


def test_a_grouping_without_relation_explains_nothing(model, some, stats):
    batch = next(walk(model, some))
    grouping = type(stats.groupings["theme"])()
    values = batch.flat(batch.streams.mlp_post)
    grouping.add(torch.randint(200, (len(values),), generator=torch.Generator().manual_seed(0)), values)
    share = grouping.explained(values.double().mean(0), values.double().var(0, unbiased=False))
    assert share.mean().abs() < 0.01


def test_the_strongest_examples_are_the_strongest(stats, activations):
    expected = activations.topk(STRONGEST, dim=0).values.float()
    torch.testing.assert_close(stats.top, expected, atol=1e-4, rtol=1e-4)


def test_examples_lie_in_their_interval_and_carry_their_context(model, some, stats):
    seen = {tuple(row.tolist()) for batch in walk(model, some) for row in _contexts(batch)}
    assert stats.priority.isfinite().any()
    for i, low in enumerate(EDGES):
        here = stats.priority[i].isfinite()
        values = stats.value[i][here]
        assert (values >= low).all()
        if i + 1 < len(EDGES):
            assert (values < EDGES[i + 1]).all()
        for context in stats.context[i][here][:20]:
            assert tuple(context.tolist()) in seen


def _contexts(batch):
    before = CONTEXT // 2
    for story in batch.encoded:
        tokens = story.tokens.tolist()
        for p in range(len(tokens) - 1):
            window = [tokens[q] if 0 <= q < len(tokens) else -1 for q in range(p - before, p - before + CONTEXT)]
            yield torch.tensor(window)


def test_of_equal_activations_the_first_are_examples():
    a = torch.zeros(40, 3)
    a[30, 0], a[:20, 1], a[:, 2] = 5.0, 1.0, torch.arange(40.0)
    chosen = _strongest(a)
    assert chosen.sum(0).tolist() == [STRONGEST] * 3
    assert chosen[30, 0] and chosen[: STRONGEST - 1, 0].all()
    assert chosen[:STRONGEST, 1].all() and chosen[-STRONGEST:, 2].all()
