"""The card of one part of a model, neuron, head or feature: what is known of it, as plain data and as HTML that needs
nothing else."""

import dataclasses
import html

from helpers.core.estimates import Comparison

Side = tuple[float, float, float]  # a mean and its interval


@dataclasses.dataclass(frozen=True)
class Card:
    """part: as in "feature 12". name: as a reader wrote it, or "".

    fires: share of the positions at which it does (a feature: above zero; others: two standard deviations above their
    mean). rule: when it fires, found on explore; precision, recall: of the rule, on unseen stories. examples: from loud to
    quiet, each its tokens, the part's activation at each (of a head: the nats that the next word loses
    without it), and the number of the token at which it was chosen.
    fed: what lifts it where it fires, in shares of its input's rise, by token, place and head; words: the words that each
    head brings it from. raises, lowers: words, with the logits that it adds where it fires.
    cost: nats a token without it; here, elsewhere: nats where it fires, and elsewhere. against: what it loses at the same
    places if as strong a write of another part is taken away instead. sure: the verdict of the two. note: what a reader
    of this card should know.
    """

    part: str
    name: str
    fires: float
    rule: str
    precision: float
    recall: float
    examples: list[tuple[list[str], list[float], int]]
    fed: dict[str, float]
    words: dict[str, list[str]]
    raises: dict[str, float]
    lowers: dict[str, float]
    cost: float
    here: Side
    elsewhere: Side
    sure: str
    note: str = ""
    pair: Comparison | None = dataclasses.field(default=None, repr=False, compare=False)

    def record(self) -> dict:
        """The card as plain data, as a library keeps it."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "pair"}

    def lines(self) -> dict[str, str]:
        """What the card says, a line a question."""
        sides = [f"{side[0]:+.3f} ({side[1]:+.3f} to {side[2]:+.3f})" for side in (self.here, self.elsewhere)]
        words = {who: f" ({', '.join(some)})" for who, some in self.words.items()}
        shares = sorted(self.fed.items(), key=lambda pair: -pair[1])
        fed = (f"{who} {share:.0%}{words.get(who, '')}" for who, share in shares if abs(share) >= 0.05)
        said = lambda side: ", ".join(f"{word.strip('␣')} {value:+.1f}" for word, value in side.items())  # noqa: E731
        rows = {
            "fires": f"at {self.fires:.1%} of all places",
            "reads": f"{self.rule} (right {self.precision:.0%} of the time; finds {self.recall:.0%} of its places)",
            "is fed by": ", ".join(fed),
            "looks at": "" if self.fed else ", ".join(word for some in self.words.values() for word in some),
            "raises": said(self.raises),
            "lowers": said(self.lowers),
            "without it": f"where it fires {sides[0]} nats, elsewhere {sides[1]}; {self.cost:+.4f} a token in all",
            "how sure": self.sure,
            "mind": self.note,
        }
        return {name: text for name, text in rows.items() if text}

    def __repr__(self) -> str:
        mark = lambda tokens, at: "".join(f"[{t}]" if i == at else t for i, t in enumerate(tokens))  # noqa: E731
        shown = (mark(tokens, at) for tokens, _, at in self.examples)
        rows = (f"{name}: {text}" for name, text in self.lines().items())
        return "\n".join([f"{self.part}: {self.name or 'no name'}", *(f"  {line}" for line in shown), *rows])

    def _repr_html_(self) -> str:
        # the class keeps JupyterLab from reading two dollars as a formula
        title = f"<p><b>{html.escape(self.part)}</b> {html.escape(self.name)}</p>"
        return f'<div class="part-card tex2jax_ignore mathjax_ignore">{title}{self.body()}</div>'

    def body(self) -> str:
        """The card without its title."""
        top = max((max(values) for _, values, _ in self.examples), default=0) or 1.0
        shown = []
        for tokens, values, at in self.examples:
            pieces = (
                f'<span style="background:rgba(200,60,60,{0.75 * max(value, 0) / top:.2f})">{html.escape(token)}</span>'
                if value > 0.02 * top
                else html.escape(token)
                for token, value in zip(tokens, values, strict=True)
            )
            shown.append(f"<li>{''.join(pieces)} <small>{values[at]:.1f}</small></li>")
        rows = "".join(f"<dt>{name}</dt><dd>{html.escape(text)}</dd>" for name, text in self.lines().items())
        return f'<ul class="examples">{"".join(shown)}</ul><dl>{rows}</dl>'
