// The page: three tabs, two languages, and whether the model is there.

import { get, place } from "./dom.js";
import { say, speak, language, other } from "./words.js";
import { startAsk } from "./ask.js";
import { startBatch, showJobs } from "./batch.js";
import { startGraph, showGraph } from "./graph.js";

const TABS = ["ask", "batch", "graph"];
const SHOWN = { ask: () => {}, batch: showJobs, graph: showGraph };

function open(name, focus) {
  for (const one of TABS) {
    const tab = place(`tab-${one}`);
    tab.setAttribute("aria-selected", one === name);
    tab.tabIndex = one === name ? 0 : -1;
    place(one).hidden = one !== name;
    if (one === name && focus) tab.focus();
  }
  if (location.hash !== `#${name}`) history.replaceState(null, "", `#${name}`);
  SHOWN[name]();
}

async function look() {
  const shown = place("health");
  try {
    const found = await get("/api/health");
    shown.textContent = `${found.model}${found.waiting ? ` · ${found.waiting} ${say("waiting")}` : ""}`;
    shown.classList.remove("bad");
  } catch (error) {
    shown.textContent = error.message;
    shown.classList.add("bad");
  }
}

place("language").addEventListener("click", () => { other(); });
for (const [at, name] of TABS.entries()) {
  place(`tab-${name}`).addEventListener("click", () => open(name));
  place(`tab-${name}`).addEventListener("keydown", event => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) open(TABS[(at + step + TABS.length) % TABS.length], true);
  });
}
speak();
document.documentElement.lang = language();
window.addEventListener("hashchange", () => open(TABS.includes(location.hash.slice(1)) ? location.hash.slice(1) : "ask"));

const options = await get("/api/options");
startAsk(options);
startBatch(options);
startGraph(options);
open(TABS.includes(location.hash.slice(1)) ? location.hash.slice(1) : "ask");
look();
setInterval(look, 5000);
document.body.dataset.ready = "yes";
