"""Thin helpers of the TinyStories circuits workbook; the notebooks hold the argument."""

from helpers.files import WorkbookError
from helpers.loading import load_model
from helpers.sampling import own_stories, sample
from helpers.stories import load_stories, stream_stories

__all__ = ["WorkbookError", "load_model", "load_stories", "own_stories", "sample", "stream_stories"]
