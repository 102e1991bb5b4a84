"""A graph, or a part of it, drawn: as one HTML file that asks for nothing elsewhere, or as a picture."""

import json
from collections import Counter
from pathlib import Path

from common.errors import UserError
from common.files import to_line
from kg import queries
from kg.entities import find
from kg.queries import Triple
from kg.terms import name_of

HERE = Path(__file__).parent
MOST_SOURCES = 5  # of one triple that are shown; the page says how many there are
LARGEST_PICTURE = 150  # entities that a picture can still show
FONTS = ("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei")
FONTS += ("PingFang SC", "Hiragino Sans GB", "Microsoft YaHei", "SimHei", "Droid Sans Fallback", "Arial Unicode MS")


def choose_triples(store, most: int) -> tuple[list[Triple], bool]:
    """At most so many merged triples, those of the entities that stand in most of them; whether there are more."""
    degrees = Counter()
    for quad in find(store, None, None, None, ""):
        degrees.update((quad.subject.value, quad.object.value))
    chosen = {}
    for iri in sorted(degrees, key=lambda one: (-degrees[one], one)):
        for triple in queries.around(store, iri, most + 1):
            if len(chosen) == most and triple not in chosen:
                return list(chosen), True
            chosen[triple] = None
    return list(chosen), False


def as_data(store, triples: list[Triple], note: str = "") -> dict:
    """What the page draws: nodes (name, degree), edges (their ends by number, relation, count, sources), relations."""
    degrees = Counter(end for head, _, tail in triples for end in dict.fromkeys((head, tail)))
    numbers = {iri: number for number, iri in enumerate(degrees)}
    edges = []
    for head, relation, tail in triples:
        sources = queries.sources_of(store, (head, relation, tail))
        ends = {"head": numbers[head], "tail": numbers[tail], "relation": name_of(relation)}
        edges.append(ends | {"count": len(sources), "sources": sources[:MOST_SOURCES]})
    relations = Counter(edge["relation"] for edge in edges)
    ordered = sorted(relations.items(), key=lambda item: (-item[1], item[0]))
    return {
        "nodes": [{"name": name_of(iri), "degree": degrees[iri]} for iri in numbers],
        "edges": edges,
        "relations": [{"name": name, "count": count} for name, count in ordered],
        "note": note,
    }


def page(data: dict) -> str:
    """The HTML file: data as JSON in which nothing can end a script, Cytoscape.js with its licence, and the page."""
    text = to_line(data).replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    vendored = (HERE / "vendor" / "cytoscape.min.js").read_text(encoding="utf-8")
    licence = (HERE / "vendor" / "cytoscape-LICENSE").read_text(encoding="utf-8")
    before, between, after = _split((HERE / "show.html").read_text(encoding="utf-8"), "/*DATA*/", "/*CYTOSCAPE*/")
    return f"{before}{text}{between}/*\n{licence}*/\n{vendored}{after}"


def _split(template: str, first: str, second: str) -> tuple[str, str, str]:
    before, _, rest = template.partition(first)
    return before, *rest.split(second, 1)


def draw(data: dict, file: Path) -> None:
    """A picture (PNG) of a small graph; UserError for an empty one, one too large to be read, or one without a font for
    its names.
    """
    if not data["nodes"]:
        raise UserError(f"--png {file}: the graph has no triple to draw; leave the flag out")
    if len(data["nodes"]) > LARGEST_PICTURE:
        raise UserError(
            f"--png {file}: {len(data['nodes'])} entities are too many for a picture, {LARGEST_PICTURE} at most; "
            "choose a part by --entity and --hops, or --limit"
        )
    import matplotlib

    matplotlib.use("Agg")
    import networkx
    from matplotlib import font_manager, pyplot

    there = {font.name for font in font_manager.fontManager.ttflist}
    fonts = [name for name in FONTS if name in there]
    if not fonts and any(ord(char) > 0x2E7F for node in data["nodes"] for char in node["name"]):
        raise UserError(
            "--png: no font with Chinese characters is installed (Debian, Ubuntu: apt install fonts-noto-cjk); --out "
            "makes a page, which the browser draws in its own fonts"
        )
    graph = networkx.MultiDiGraph()
    graph.add_nodes_from(range(len(data["nodes"])))
    graph.add_edges_from((edge["head"], edge["tail"]) for edge in data["edges"])
    places = _places(networkx, networkx.Graph(graph))
    colours = {one["name"]: f"C{number % 10}" for number, one in enumerate(data["relations"])}
    with pyplot.rc_context({"font.family": [*fonts, "DejaVu Sans"]}):
        extent = [max(place[axis] for place in places.values()) for axis in (0, 1)]
        figure, axes = pyplot.subplots(figsize=[max(3, side) for side in extent])
        axes.axis("off")
        said = {}
        for edge in data["edges"]:
            said.setdefault((edge["head"], edge["tail"]), []).append(edge["relation"])
        for (head, tail), relations in said.items():
            ends, colour = {"xy": places[tail], "xytext": places[head]}, colours[relations[0]]
            line = {"arrowstyle": "-|>", "color": colour, "shrinkA": 6, "shrinkB": 8, "lw": 1}
            axes.annotate("", **ends, arrowprops=line)
            middle = [(a + b) / 2 for a, b in zip(*ends.values(), strict=True)]
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
            text = " / ".join(map(_plain, relations))
            axes.text(*middle, text, size=7, color=colour, ha="center", va="center", bbox=box)
        for number, node in enumerate(data["nodes"]):
            axes.scatter(*places[number], s=40 + 25 * node["degree"], color="#7f93a8", zorder=3)
            axes.text(*places[number], _plain(node["name"]), size=9, ha="center", va="bottom", zorder=4)
        figure.savefig(file, dpi=100, bbox_inches="tight", format="png")
        pyplot.close(figure)


def _places(networkx, graph) -> dict[int, tuple[float, float]]:
    """Where each entity is drawn, in inches: what hangs together by springs, the parts beside and below each other."""
    places, left, top, below = {}, 0.0, 0.0, 0.0
    parts = sorted(map(sorted, networkx.connected_components(graph)), key=lambda part: (-len(part), part))
    radii = [1.1 * len(part) ** 0.5 for part in parts]
    width = max(2 * radii[0], 1.6 * sum(4 * radius**2 for radius in radii) ** 0.5) if radii else 0
    for part, radius in zip(parts, radii, strict=True):
        if left and left + 2 * radius > width:
            left, top, below = 0.0, below, below
        found = networkx.spring_layout(graph.subgraph(part), k=2.5 / len(part) ** 0.5, iterations=300, seed=1)
        for one, (x, y) in found.items():
            places[one] = (left + radius * (1 + 0.8 * x), top + radius * (1 + 0.8 * y))
        left, below = left + 2 * radius, max(below, top + 2 * radius)
    return places


def _plain(name: str) -> str:
    """A name as a picture can show it: short, and without what matplotlib would typeset."""
    shown = json.dumps(name[:20], ensure_ascii=False)[1:-1] + ("…" if len(name) > 20 else "")
    return shown.replace("$", r"\$")
