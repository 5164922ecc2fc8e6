"""The report's pages: bodies in frames, headings into contents and into the search index, nothing from elsewhere."""

import base64
import html
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import nbformat
from bs4 import BeautifulSoup, NavigableString, Tag
from nbconvert.filters import ansi2html
from nbconvert.filters.markdown_mistune import markdown2html_mistune
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from helpers.core.card import Card
from helpers.core.contexts import vocabulary_of_families
from helpers.core.files import write_text
from helpers.report.findings import VERDICTS, measured, said
from helpers.report.library import GROUPS, Library, cells

SCRIPT = "circuitsvis-script"  # the id of the element by which a stored notebook loads the widgets' script
NO_SCRIPT = (
    "JavaScript is off: there is no search, no filter, and the interactive figures stay empty. All text, tables and "
    "pictures are here."
)
TWIN = "An interactive twin of the figure above draws here where JavaScript is on."
HEADINGS = ("h1", "h2", "h3")
BLOCKS = ("td", "th", "li", "p", "br", "div", "pre", "details")  # words of two of them do not run together
HERE, text_of = Path(__file__).parent, html.escape


def write_pages(pages: Sequence[tuple[str, str, str]], note: str, out: Path) -> list[Path]:
    """Write pages (title, file name, body) that link to each other, with their style, scripts and one search index.

    note: what all of it was made with, said on every page.
    """
    index, titles = [], {name: title for title, name, _ in pages}
    for title, name, body in pages:
        soup = BeautifulSoup(body, "html.parser")
        for old in soup.select("a.anchor-link"):
            old.decompose()
        for i, heading in enumerate(soup.find_all(HEADINGS)):
            name_of = re.sub(r"\W+", "-", heading.get_text()).strip("-") or "section"
            heading["id"] = f"{name_of}-{i}" if soup.find(id=name_of) else name_of
        index += [[name, *section] for section in sections(soup)]
        listed = contents(soup)
        for heading in soup.find_all(HEADINGS[1:]):
            link = {"href": f"#{heading['id']}", "class": "link", "aria-label": "link to this section"}
            heading.append(soup.new_tag("a", attrs=link, string="#"))
        for table in soup.find_all("table"):
            table.wrap(soup.new_tag("div", attrs={"class": "scroll"}))
        for wait in soup.select(".circuitsvis-widget small"):
            wait.string = TWIN
        here = {file: " aria-current=page" if file == name else "" for file in titles}
        links = "".join(f'<a href="{file}"{here[file]}>{text_of(text)}</a>' for file, text in titles.items())
        widgets = '<script src="circuitsvis.js"></script>' if soup.select_one(".circuitsvis-widget") else ""
        write_text(
            out / name,
            f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{text_of(title)}</title>'
            '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
            f'<link rel="stylesheet" href="pages.css">{widgets}<script src="pages.js" defer></script></head><body>'
            f'<header><nav aria-label="pages">{links}</nav><noscript>{NO_SCRIPT}</noscript></header>'
            f'<p class="made">{text_of(note)}</p><div class="page">{listed}<main>{soup}</main></div></body></html>\n',
        )
    style, script = ((HERE / f"pages.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    light, dark = (HtmlFormatter(style=name).get_style_defs(".highlight") for name in ("default", "github-dark"))
    bundle = (files("circuitsvis") / "dist" / "cdn" / "iife.js").read_text(encoding="utf-8")
    rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in index)
    write_text(out / "pages.css", f"{style}{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n")
    write_text(out / "pages.js", script)
    write_text(out / "index.js", f"window.PAGES = {json.dumps(titles)};\nwindow.SECTIONS = [\n{rows}\n];\n")
    write_text(out / "circuitsvis.js", f"{bundle}\nwindow.CircuitsVis = CircuitsVis;\n")
    return [out / name for name in titles]


def contents(soup: BeautifulSoup) -> str:
    """The table of contents of a page, or nothing for a page of one section."""
    found = soup.find_all(HEADINGS[1:])
    rows = (f'<li class="{h.name}"><a href="#{h["id"]}">{text_of(h.get_text())}</a></li>' for h in found)
    folded = f"<details open><summary>Contents</summary><ol>{''.join(rows)}</ol></details>"
    return f'<nav class="contents" aria-label="contents">{folded}</nav>' if len(found) > 1 else ""


def sections(soup: BeautifulSoup) -> list[list[str]]:
    """What the search finds on a page: [anchor, heading, text, code] of every section and of every row of a list."""
    blocks = soup.select("details.code .highlight, pre code")
    code = {id(node) for block in blocks for node in block.find_all(string=True)}
    found = [["", "", [], []]]
    for node in soup.descendants:
        if isinstance(node, Tag):
            found[-1][2].append(" " if node.name in BLOCKS else "")
        if isinstance(node, Tag) and (
            node.name in HEADINGS or (node.name in ("tr", "details") and node.get("id"))
        ):
            heading = node.td or node.b or node
            found.append([node["id"], heading.get_text(" ", strip=True), [], []])
        elif type(node) is NavigableString:  # no style, script or comment
            found[-1][3 if id(node) in code else 2].append(str(node))
    text = lambda parts: " ".join("".join(parts).split())  # noqa: E731
    rows = ([anchor, title, text(of_text), text(of_code)] for anchor, title, of_text, of_code in found)
    return [row for row in rows if row[2] or row[3]]


def notebook_body(notebook: nbformat.NotebookNode) -> str:
    """A notebook as HTML: code folded, pictures described, and the widgets' script left to the page."""
    parts, heading = [], ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(markdown2html_mistune(cell.source))
            heading = (re.findall(r"^#+ (.+)$", cell.source, re.MULTILINE) or [heading])[-1]
        if cell.cell_type == "code" and cell.source.strip():
            composes = "hide-input" in cell.metadata.get("tags", [])
            kind, told = ("code sentence", "how this was written") if composes else ("code", "code")
            source = highlight(cell.source, PythonLexer(), HtmlFormatter())
            parts.append(f'<details class="{kind}"><summary>{told}</summary>{source}</details>')
            parts += [f'<div class="output">{shown(output, heading)}</div>' for output in cell.outputs]
    return "\n".join(parts)


def shown(output: nbformat.NotebookNode, heading: str) -> str:
    """One output in its richest form; a picture is described by its figure's title, or else by its section's."""
    data = output.get("data", {"text/plain": output.get("text") or "\n".join(output.get("traceback", []))})
    if "text/html" in data:
        return "" if f'id="{SCRIPT}"' in data["text/html"] else data["text/html"]
    plain = data.get("text/plain", "")
    if "image/png" in data:
        source = "".join(data["image/png"].split())
        width = int.from_bytes(base64.b64decode(source[:32])[16:20], "big")  # the fifth word of a PNG
        title = plain.removeprefix("Figure: ") if plain.startswith("Figure: ") else f"Figure in “{heading}”"
        facts = f'style="--width:{width}px" alt="{text_of(title[:300])}"'
        return f'<img class="figure" src="data:image/png;base64,{source}" {facts}>'
    if "text/markdown" in data:
        return markdown2html_mistune(data["text/markdown"])
    return f"<pre>{ansi2html(plain)}</pre>"


def title_of(notebook: nbformat.NotebookNode, otherwise: str) -> str:
    """The notebook's first heading."""
    found = re.search(r"^# (.+)$", notebook.cells[0].source, re.MULTILINE) if notebook.cells else None
    return found[1].strip() if found else otherwise


def readme_body(text: str, root: Path) -> str:
    """The README as HTML, its links pointing from report/ at what stands beside it, its pictures within."""
    soup = BeautifulSoup(markdown2html_mistune(text), "html.parser")
    for image in soup.select("img"):
        image["src"] = f"data:image/png;base64,{base64.b64encode((root / image['src']).read_bytes()).decode()}"
    for link in soup.select("a[href]"):
        notebook = re.fullmatch(r"notebooks/(\d[^/]*)\.ipynb", link["href"])
        if not re.match(r"[a-z]+:|#|\w+\.html", link["href"]):
            link["href"] = f"{notebook[1]}.html" if notebook else f"../{link['href']}"
    return str(soup)


def findings_body(rows: list[dict]) -> str:
    """All findings, to be filtered."""
    lead = (
        f"What was measured, beside the strongest fair control; the difference of the two decides: {_meanings()}."
    )
    listed = []
    for row in rows:
        page = f'<a href="{text_of(row["file"])}.html">{text_of(row["notebook"])}</a>'
        value = f"{said(row, 'value', interval=True)} {row['unit']}"
        folded = f"<details><summary>{text_of(value)}</summary>{text_of(measured(row))}</details>"
        facts = {"notebook": row["file"][:2], "verdict": row["verdict"]}
        listed.append((facts, (text_of(row["sentence"]), folded, page, _verdict(row["verdict"]))))
    return _list("All findings", lead, "finding | measured | notebook | verdict", listed)


def library_body(library: Library) -> str:
    """What the model knows, a group at a time, and then every entry, its card folded, the one that matters most first."""
    lead = (
        "What the model knows: which part does it, what it fires on, what it raises and lowers. Ask in words (“he or she”, "
        "“inside quotes”, “animals”), or for a part (“head 5”). Open an entry to see its card. A feature is a part of what "
        "the neurons do together (notebook 06); its name says when it fires: what it raises; not what it lowers. A nat "
        f"lost makes a word 2.7 times less likely. How sure is it that the part is needed? {_meanings()}."
    )
    rows = sorted((entry.record() for entry in library.entries.values()), key=lambda row: -(row["matters"] or -1))
    told = []
    for group, about in GROUPS.items():
        summed, count = library.groups.get(group, {}), sum(row["group"] == group for row in rows)
        lost = "; without its features the model loses hardly anything" if summed else ""
        if summed and summed["cost"] >= 0.005:
            lost = f"; without its features a token costs {summed['cost']:.2f} nats more, {summed['share']:.1%} of what the MLP saves"
        told.append(
            f'<section data-summary="{group}"><h2>{group.capitalize()}</h2><p><small>{about}; {count} entries{lost}'
            f"</small></p><p>{text_of(summed.get('summary', ''))}</p></section>"
        )
    listed = "".join(_entry(i, row) for i, row in enumerate(rows)) or "<p>None yet.</p>"
    facts = 'data-filters="group kind sure notebook" data-sorts="matters sentence part sure"' if rows else ""
    shown = "".join(told) if library.groups else ""
    return (
        f'<h1>The library</h1><p>{lead}</p>{shown}<h2>All entries</h2><div class="entries" {facts}>{listed}</div>'
    )


def _entry(i: int, row: dict) -> str:
    """An entry of the library, its card and its evidence folded."""
    sentence, parts, *sides, verdict = map(text_of, cells(row))
    matters = "" if row["matters"] is None else f"{row['matters']:.4f} nats a token"
    topics = about(row)
    facts = {
        "kind": row["kind"],
        "group": row["group"] or "none",
        "sure": verdict,
        "notebook": row["notebook"][:2],
    }
    facts |= {"sentence": row["sentence"], "part": parts, "matters": row["matters"] or 0}
    facts["parts"] = "; ".join(row["parts"])
    data = "".join(f' data-{key}="{text_of(str(value))}"' for key, value in facts.items())
    tags = " · ".join(filter(None, (parts, row["group"], matters, ", ".join(topics))))
    proofs = "".join(
        f"<li>{text_of(proof['sentence'])} {text_of(measured(proof))} ({proof['notebook']})</li>"
        for proof in row["evidence"]
    )
    known = zip(("reads", "raises", "lowers"), sides, strict=True)
    said = "".join(f"<dt>{name}</dt><dd>{words}</dd>" for name, words in known if words)
    body = Card(**row["card"]).body() if row["card"] else f"<dl>{said}</dl>"
    return (
        f'<details class="entry" id="row-{i}"{data}><summary><b>{sentence}</b> {_verdict(verdict)}<br><small>{tags}</small>'
        f"</summary>{body}<p>Measured:</p><ul>{proofs}</ul></details>"
    )


def about(row: dict) -> list[str]:
    """The word families of which an entry reads, raises or lowers three words or more."""
    words = {word.strip("␣").lower() for side in ("reads", "raises") for word in row[side]}
    words |= {word.removesuffix("s") for word in words}
    families = vocabulary_of_families()["families"]
    return [name for name, lemmas in families.items() if len(words & set(lemmas)) >= 3]


def _list(title: str, lead: str, names: str, rows: list[tuple[dict[str, str], Sequence[str]]]) -> str:
    """A page of one table, with the facts of each row by which it can be filtered."""
    body = ""
    for i, (facts, texts) in enumerate(rows):
        data = "".join(f' data-{key}="{text_of(value)}"' for key, value in facts.items())
        body += f'<tr id="row-{i}"{data}>{"".join(f"<td>{text}</td>" for text in texts)}</tr>'
    head = "".join(f"<th>{name}</th>" for name in names.split(" | "))
    filters = " ".join(rows[0][0]) if rows else ""
    table = f'<table data-filters="{filters}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f"<h1>{title}</h1><p>{lead}</p>{table if rows else '<p>None yet.</p>'}"


def _meanings() -> str:
    return "; ".join(f"{_verdict(name)} if {meaning}" for name, meaning in VERDICTS.items())


def _verdict(name: str) -> str:
    return f'<i class="verdict {name}" title="{VERDICTS[name]}">{name}</i>'
