// A graph that grows, drawn by Cytoscape.js.

const COLOURS = ["#2458c5", "#c2410c", "#15803d", "#7e22ce", "#0e7490", "#b45309", "#be185d", "#4d7c0f", "#b91c1c", "#334155"];

const STYLE = () => [
  { selector: "node", style: {
    label: "data(name)", width: "data(size)", height: "data(size)", "background-color": "#7f93a8", "font-size": 13, color: "#1b2733",
    "text-wrap": "ellipsis", "text-max-width": 130, "text-valign": "bottom", "text-margin-y": 3, "min-zoomed-font-size": 6,
    "font-family": getComputedStyle(document.body).fontFamily } },
  { selector: "node.absent", style: { "background-color": "#fff", "border-width": 2, "border-style": "dashed", "border-color": "#8a5cc7" } },
  { selector: "edge", style: {
    label: "data(name)", width: 1.8, "line-color": "data(colour)", "target-arrow-color": "data(colour)", "target-arrow-shape": "triangle",
    "curve-style": "bezier", "font-size": 10, color: "data(colour)", "text-background-color": "#fbfcfe", "text-background-opacity": 0.9,
    "text-background-padding": 1, "min-zoomed-font-size": 6, "arrow-scale": 0.9, "font-family": getComputedStyle(document.body).fontFamily } },
  { selector: "edge.absent", style: { "line-style": "dashed" } },
  { selector: ":selected", style: { "background-color": "#f0a202", width: 4 } },
  { selector: "node:selected", style: { width: "data(size)" } },
];

export function drawing(container, chosen = () => {}) {
  const graph = window.cytoscape({ container, style: STYLE(), minZoom: 0.1, maxZoom: 2.5 });
  const colours = new Map();
  let timer = 0;
  graph.on("tap", "node, edge", event => chosen(event.target.data()));

  function colour(relation) {
    if (!colours.has(relation)) colours.set(relation, COLOURS[colours.size % COLOURS.length]);
    return colours.get(relation);
  }
  function node(name, absent) {
    const id = `n ${name}`;
    const there = graph.getElementById(id);
    if (there.length) { there.data("size", Math.min(46, there.data("size") + 4)); return id; }
    const angle = graph.nodes().length * 2.4; // a spiral: no two begin at one place
    const far = 40 * Math.sqrt(1 + graph.nodes().length);
    const middle = { x: far * Math.cos(angle), y: far * Math.sin(angle) };
    graph.add({ group: "nodes", data: { id, name, size: 20 }, classes: absent ? "absent" : "", position: middle });
    return id;
  }
  function arrange() {
    clearTimeout(timer);
    timer = setTimeout(() => {
      graph.resize();
      if (!graph.nodes().length) return;
      const many = graph.nodes().length > 150;
      graph.layout({ name: "cose", animate: false, randomize: many, numIter: many ? 250 : 1000, nodeRepulsion: 5000, idealEdgeLength: 64,
        nodeDimensionsIncludeLabels: true, nodeOverlap: 20, gravity: 0.8, componentSpacing: 24, padding: 30 }).run();
      if (graph.zoom() > 1.2) { graph.zoom(1.2); graph.center(); }
      const larger = Math.min(1.5, Math.max(1, 1 / graph.zoom())); // names stay readable where all is fitted in
      graph.nodes().style("font-size", 13 * larger);
      graph.edges().style("font-size", 10.5 * larger);
      container.dataset.nodes = graph.nodes().length;
      container.dataset.edges = graph.edges().length;
    }, 60);
  }
  return {
    clear() { graph.elements().remove(); colours.clear(); arrange(); container.dataset.nodes = container.dataset.edges = 0; },
    add(head, relation, tail, more = {}) {
      const id = `e ${JSON.stringify([head, relation, tail])}`;
      if (graph.getElementById(id).length) return;
      const data = { id, name: relation, triple: [head, relation, tail], colour: colour(relation), ...more };
      data.source = node(head, more.headAbsent);
      data.target = node(tail, more.tailAbsent);
      graph.add({ group: "edges", data, classes: more.headAbsent || more.tailAbsent ? "absent" : "" });
      arrange();
    },
    arrange,
  };
}
