// Graph: search, what is around an entity, where triples come from, verdicts, downloads.

import { button, get, make, place } from "./dom.js";
import { drawing } from "./draw.js";
import { judgeList } from "./judge.js";
import { say, whenSpeaking } from "./words.js";

let picture = null;
let shown = { nodes: [], edges: [] };
let name = "";
let typing = 0;

export function startGraph(options) {
  picture = drawing(place("map"), chosen => (chosen.triple ? showEdge(shown.edges[chosen.at]) : showNode(chosen.name)));
  for (const form of options.formats) {
    const link = make("a", form, place("formats"));
    link.href = `/api/graph/files/${form}`;
    link.download = "";
  }
  place("search").addEventListener("submit", event => { event.preventDefault(); name = place("name").value.trim(); showGraph(); });
  place("everything").addEventListener("click", () => { place("name").value = name = ""; showGraph(); });
  place("name").addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(suggest, 200); });
  whenSpeaking(showGraph);
}

async function suggest() {
  const part = place("name").value.trim();
  const found = part ? await get(`/api/graph/names?${new URLSearchParams({ part })}`).catch(() => []) : [];
  place("names").replaceChildren();
  for (const one of found) make("option", null, place("names")).value = one;
}

export async function showGraph() {
  if (place("graph").hidden) return;
  place("graph-error").textContent = "";
  const query = new URLSearchParams(name ? { name, hops: 2 } : {});
  try {
    shown = await get(`/api/graph?${query}`);
  } catch (error) {
    place("graph-error").textContent = error.message;
    return;
  }
  picture.clear();
  for (const [at, edge] of shown.edges.entries()) {
    picture.add(shown.nodes[edge.head].name, edge.relation, shown.nodes[edge.tail].name, { at });
  }
  const note = shown.nodes.length ? say("count", shown.nodes.length, shown.edges.length) : say("empty");
  place("map-note").textContent = [note, shown.more ? say("more") : ""].join(" ");
  const about = place("about");
  about.replaceChildren();
  if (name && shown.nodes.length) showNode(shown.nodes.some(one => one.name === name) ? name : shown.nodes[0].name);
  else {
    make("p", say("choose"), about, "muted");
    listEdges(about, shown.edges.slice(0, 60));
  }
}

function listEdges(into, edges) {
  const list = make("ul", null, into, "triples");
  for (const edge of edges) {
    const line = button(null, make("li", null, list), () => showEdge(edge), "link");
    make("b", shown.nodes[edge.head].name, line);
    make("span", `— ${edge.relation} →`, line, "relation");
    make("b", shown.nodes[edge.tail].name, line);
  }
}

function showNode(chosen) {
  const about = place("about");
  about.replaceChildren();
  make("h2", chosen, about);
  button(say("around"), about, () => { place("name").value = name = chosen; showGraph(); });
  listEdges(about, shown.edges.filter(edge => [edge.head, edge.tail].some(end => shown.nodes[end].name === chosen)));
}

function showEdge(edge) {
  const about = place("about");
  about.replaceChildren();
  make("h2", `${shown.nodes[edge.head].name} — ${edge.relation} → ${shown.nodes[edge.tail].name}`, about);
  make("h3", say("sources", edge.count), about);
  for (const source of edge.sources) {
    const box = make("div", null, about, "source");
    make("div", [source.id, `${say("run")} ${source.run}`, source.topic].filter(Boolean).join(" · "), box, "muted");
    if (source.text) passage(box, source.text, source.head.said, source.tail.said);
    button(say("judge"), box, () => judge(box, source), "quiet");
  }
}

function passage(into, text, head, tail) {
  const line = make("p", null, into);
  const ends = [[head, "head"], [tail, "tail"]].filter(([one]) => one && text.includes(one)).sort((a, b) => text.indexOf(a[0]) - text.indexOf(b[0]));
  let at = 0;
  for (const [one, kind] of ends) {
    const start = text.indexOf(one, at);
    if (start < 0) continue;
    line.append(text.slice(at, start));
    make("mark", one, line, kind);
    at = start + one.length;
  }
  line.append(text.slice(at));
}

async function judge(box, source) {
  box.querySelector("button")?.remove();
  const query = new URLSearchParams({ run: source.run, id: JSON.stringify(source.id), collection: source.collection || "" });
  try {
    const found = await get(`/api/graph/record?${query}`);
    const relations = [...new Set(found.triples.map(triple => triple[1]))];
    judgeList(box, { text: found.text, topic: found.topic, relations }, found.triples);
  } catch (error) {
    make("p", error.message, box, "error");
  }
}
