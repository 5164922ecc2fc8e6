"""Execute the notebooks and write them as linked pages that need no network: `python -m helpers.report`."""

import argparse
import html
import json
import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import markdown2html_mistune
from pygments.formatters import HtmlFormatter
from tqdm.auto import tqdm

from helpers.core.files import ROOT, write_text
from helpers.core.model import EMBEDDED_MODEL
from helpers.report.prose import listed, percent, table  # noqa: F401 (until all notebooks take them from prose)
from helpers.report.tidy import tidy

CSS = Path(__file__).with_suffix(".css")


def execute(path: Path, timeout: int = 1800) -> nbformat.NotebookNode:
    """Run a notebook's cells in order in a fresh kernel, with a progress bar; no widget state is stored.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    total = sum(cell.cell_type == "code" for cell in notebook.cells)
    with tqdm(total=total, desc=path.name, unit=" cells") as bar:
        client = NotebookClient(
            notebook,
            timeout=timeout,
            kernel_name="python3",
            store_widget_state=False,
            resources={"metadata": {"path": str(path.parent)}},
        )
        client.on_cell_executed = lambda **_: bar.update()
        client.execute()
    return tidy(notebook)


def page(notebook: nbformat.NotebookNode, title: str, links: list[tuple[str, str]]) -> str:
    """One notebook as a self-contained page."""
    body, _ = HTMLExporter(template_name="basic", anchor_link_text="").from_notebook_node(notebook)
    return frame(body, title, links)


def frame(body: str, title: str, links: list[tuple[str, str]]) -> str:
    """A page around a body: title, style, links to the other pages."""
    nav = "".join(
        f'<a href="{target}"{" class=here" if name == title else ""}>{html.escape(name)}</a>'
        for name, target in links
    )
    css = CSS.read_text(encoding="utf-8") + HtmlFormatter().get_style_defs(".highlight")
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><link rel="icon" href="data:,"><style>{css}</style>'
    content = f"<body><nav>{nav}</nav><main>{body}</main></body>"
    return f'<!DOCTYPE html><html lang="en"><head>{head}</head>{content}</html>\n'


def title_of(notebook: nbformat.NotebookNode, path: Path) -> str:
    """The notebook's first heading, or its file name."""
    found = re.search(r"^# (.+)$", notebook.cells[0].source, re.MULTILINE) if notebook.cells else None
    return found.group(1).strip() if found else path.stem


def readme_body(text: str) -> str:
    """The README as HTML, its figures and notebook links pointing from report/ at what stands beside it."""
    body = markdown2html_mistune(text)
    body = re.sub(r'src="(figures/[^"]+)"', r'src="../\1"', body)
    return re.sub(r'href="notebooks/([^"]+)\.ipynb"', r'href="\1.html"', body)


def build(notebooks: Path, out: Path, store: bool = False) -> list[Path]:
    """Execute every notebook in order, write its page and the index; with `store` also its outputs in place."""
    sources = sorted(notebooks.glob("[0-9]*.ipynb"))
    executed = []
    for path in sources:
        notebook = execute(path)
        if store:
            write_text(path, nbformat.writes(notebook) + "\n")
        executed.append(notebook)
    if store:
        fresh = blocks(notebooks.parent)
        card = {"losses": fresh["losses"]}
        for readme, part in ((notebooks.parent / "README.md", fresh), (EMBEDDED_MODEL / "README.md", card)):
            write_text(readme, refresh(readme.read_text(encoding="utf-8"), part))
    titles = [title_of(notebook, path) for notebook, path in zip(executed, sources, strict=True)]
    links = [
        ("Overview", "index.html"),
        *((title, f"{path.stem}.html") for title, path in zip(titles, sources, strict=True)),
    ]
    pages = [
        write_text(out / f"{path.stem}.html", page(notebook, title, links))
        for notebook, title, path in zip(executed, titles, sources, strict=True)
    ]
    index = frame(readme_body((notebooks.parent / "README.md").read_text(encoding="utf-8")), "Overview", links)
    return [write_text(out / "index.html", index), *pages]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", action="store_true", help="also store outputs and the README's numbers")
    parser.add_argument("--out", type=Path, default=ROOT / "report", help="folder of the pages")
    options = parser.parse_args()
    build(ROOT / "notebooks", options.out, options.store)


def findings_table(folder: Path) -> str:
    """All notebooks' findings as a Markdown table, in the notebooks' order."""
    lines = ["| notebook | finding | measured | threshold | control | verdict |", "|---|---|---|---|---|---|"]
    for path in sorted(folder.glob("*.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        for row in data["findings"]:
            digits = row["digits"]
            value, threshold, control = (f"{row[key]:.{digits}f}" for key in ("value", "threshold", "control"))
            asked, against = f"{row['comparison']} {threshold}", f"{control} ({row['control_name']})"
            measured = f"{value} {row['unit']}".strip()
            lines.append(
                f"| {data['notebook'][:2]} | {row['sentence']} | **{measured}** | {asked} | {against} | {_verdict(row)} |"
            )
    return "\n".join(lines)


def _verdict(row: dict) -> str:
    """A verdict, and why, where a claim does not hold."""
    return f"{row['verdict']}: {row['reason']}" if row.get("reason") else row["verdict"]


def answers(folder: Path) -> str:
    """What notebooks answer in sentences of their own, in the notebooks' order."""
    found = [
        json.loads(path.read_text(encoding="utf-8")).get("answer", "") for path in sorted(folder.glob("*.json"))
    ]
    return "\n\n".join(text for text in found if text)


def losses_table(record: dict) -> str:
    """The embedded model's losses beside the n-grams', on validation text and on the project's stories."""
    columns = {"validation": "TinyStories validation text", "stories": "the project's stories"}
    lines = ["| nats a token | " + " | ".join(columns.values()) + " |", "|---|---|---|"]
    for name in ("model", "trigram", "bigram", "unigram"):
        values = [f"{record[column][f'{name}_nats_per_token']:.2f}" for column in columns]
        lines.append(f"| {name} | " + " | ".join(values) + " |")
    characters = [f"{record[column]['model_nats_per_character']:.3f}" for column in columns]
    return "\n".join([*lines, "| model, nats a character | " + " | ".join(characters) + " |"])


def refresh(text: str, blocks: dict[str, str]) -> str:
    """Put each block between its marks `<!-- name -->` and `<!-- /name -->`.

    Raises:
        ValueError: the text has no such marks.
    """
    for name, block in blocks.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(
                f"The README has no place for {name}: put <!-- {name} --> and <!-- /{name} --> into it."
            )
        text = pattern.sub(lambda match, block=block: f"{match[1]}{block}\n{match[2]}", text)
    return text


def blocks(root: Path) -> dict[str, str]:
    """The README's blocks, from the files of a checkout."""
    record = json.loads(
        (root / "helpers" / "data" / "models" / "embedded" / "training_record.json").read_text(encoding="utf-8")
    )
    folder = root / "notebooks" / "findings"
    return {"losses": losses_table(record), "findings": findings_table(folder), "answer": answers(folder)}


if __name__ == "__main__":
    main()
