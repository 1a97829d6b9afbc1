"""A report as one page that needs nothing else: its plots stand inside it, and no script runs."""

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment
from markupsafe import Markup, escape

from loadtests.plots import COLOURS, HEIGHT, LEFT, WIDTH, Series, plot
from loadtests.tables import Table

TEMPLATE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 72em;
       margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.5em } h2 { font-size: 1.1em; margin: 2em 0 .4em }
code { background: #f2f2f2; padding: .1em .3em; overflow-wrap: anywhere }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .2em .8em; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
.verdict { font-weight: 600 } .bad { color: #b00020 }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26em, 100%), 1fr)); gap: 1em 2em }
figure { margin: 0 } figcaption { font-weight: 600; font-size: .95em }
.legend { font-size: .85em } .legend span { margin-right: 1em; white-space: nowrap }
svg { width: 100%; height: auto }
{{ style }}
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% for line in lines %}<p{% if line.bad %} class="verdict bad"{% endif %}>{{ line.text }}</p>
{% endfor %}<p><code>{{ command }}</code></p>
<div class="plots">
{% for picture in pictures %}<figure>
<figcaption>{{ picture.title }}</figcaption>
{{ picture.svg }}
<div class="legend">{% for name, colour in picture.legend %}<span><b style="color: {{ colour }}">&#9632;</b> \
{{ name }}</span>{% endfor %}</div>
</figure>
{% endfor %}</div>
{% for table in tables %}<h2>{{ table.title }}</h2>
<div class="scroll"><table>
<tr>{% for cell in table.head %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for row in table.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
{% endfor %}</body>
</html>
"""


@dataclass(frozen=True)
class Line:
    """A sentence at the top."""

    text: str
    bad: bool = False


@dataclass(frozen=True)
class Picture:
    """A plot with its title."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    log: bool = False

    @property
    def svg(self) -> Markup:
        """Its text is escaped where it is made."""
        return Markup(plot(self.x_label, self.y_label, self.series, log=self.log))

    @property
    def legend(self) -> list[tuple[str, str]]:
        """(name, colour)."""
        return [(one.name, COLOURS[k % len(COLOURS)]) for k, one in enumerate(self.series)]


STYLE = """svg { font: 11px system-ui, sans-serif; fill: #444 } .grid { stroke: #e6e6e6 }
.line { fill: none; stroke-width: 1.8 }
.dots { fill: none; stroke-width: 3; stroke-linecap: round; stroke-opacity: .55 }"""
"""Of a plot, in a page and by itself."""
LEGEND_HEIGHT = 24
LETTER_WIDTH = 6.5


def standalone(picture: Picture) -> str:
    """A picture as an SVG file of its own, its legend above it."""
    names, x = list[str](), float(LEFT)
    for name, colour in picture.legend:
        names.append(f'<text x="{x:g}" y="16" style="fill: {colour}">&#9632; {escape(name)}</text>')
        x += LETTER_WIDTH * (len(name) + 4)
    size = f'viewBox="0 0 {WIDTH} {HEIGHT + LEGEND_HEIGHT}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{STYLE}</style>\n'
        f'<rect width="100%" height="100%" style="fill: #fff"/>{"".join(names)}\n'
        f'<svg y="{LEGEND_HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
        f"{picture.svg.removeprefix('<svg')}</svg>\n"
    )


def render(
    title: str, lines: Sequence[Line], command: str, tables: Sequence[Table], pictures: Sequence[Picture]
) -> str:
    """The page."""
    template = Environment(autoescape=True).from_string(TEMPLATE)
    return template.render(
        title=title, style=STYLE, lines=lines, command=command, tables=tables, pictures=pictures
    )
