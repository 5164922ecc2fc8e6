"""What rules say when they stand in the MLP's place: counts, and the directions that say them."""

import torch
from jaxtyping import Float, Num
from torch import Tensor

from helpers.core.logits import logits_in_chunks
from helpers.core.scan import Scan


class Toward:
    """Directions of the residual stream whose logits come nearest to a list of wanted ones.

    Least squares over the vocabulary, each token weighted by its share of the scanned text.
    """

    def __init__(self, scan: Scan):
        model = scan.model
        counts = torch.bincount(scan.target, minlength=model.cfg.d_vocab).float() + 0.1
        self.share, self.u = counts / counts.sum(), model.W_U
        spread = (self.u * self.share) @ self.u.T
        self.inverse = torch.linalg.inv(spread + 1e-4 * spread.diagonal().mean() * torch.eye(len(spread)))

    def __call__(self, lift: Float[Tensor, "k vocabulary"]) -> Float[Tensor, "k d_model"]:
        """A direction for each list of logits."""
        return ((lift * self.share) @ self.u.T) @ self.inverse


@torch.inference_mode()
def came_and_expected(
    scan: Scan, groups: Num[Tensor, "n group"], stream: Float[Tensor, "n d_model"] | None = None
) -> tuple[Float[Tensor, "group v"], Float[Tensor, "group v"]]:
    """How often each token comes next in each group of positions, and how often the scanned model expects it there (or
    would, with another final stream)."""
    came, hoped = torch.zeros(2, groups.shape[1], scan.model.cfg.d_vocab)
    stream, place = scan.resid_post if stream is None else stream, torch.arange(len(groups))
    where, group = groups.nonzero(as_tuple=True)  # most rules hold at few places
    size = groups[where, group].float()
    came.index_put_((group, scan.target[where]), size, accumulate=True)
    for logits, here in logits_in_chunks(scan.model, stream, place):
        some = slice(*torch.searchsorted(where, here[[0, -1]] + torch.tensor([0, 1])).tolist())
        cells = torch.stack([group[some], where[some] - here[0]])
        members = torch.sparse_coo_tensor(cells, size[some], (len(hoped), len(here)), check_invariants=False)
        hoped.addmm_(members, logits.softmax(-1))
    return came, hoped


def table_by_token(scan: Scan) -> Float[Tensor, "v neuron"]:
    """Each neuron's mean change, from its mean everywhere, given the current token (0 for tokens that do not come)."""
    change = torch.zeros(scan.model.cfg.d_vocab, scan.model.cfg.d_mlp).index_add_(0, scan.token, scan.activations)
    counts = torch.bincount(scan.token, minlength=len(change))[:, None]
    return torch.where(counts > 0, change / counts.clamp(min=1) - scan.means, 0)
