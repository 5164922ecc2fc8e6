"""Memory is given back."""

import psutil
import torch

from helpers.core.files import release


def test_what_was_freed_goes_back_to_the_system():
    process = psutil.Process()
    parts = [torch.ones(250_000) for _ in range(300)]  # a megabyte each: small enough to come from the heap
    kept = parts[-1]
    full = process.memory_info().rss
    del parts
    release()
    assert full - process.memory_info().rss > 150e6
    assert kept.sum() == 250_000
