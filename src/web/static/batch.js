// Batch: files of records, how far they are, and what came of them.

import { button, get, make, place, send } from "./dom.js";
import { say, whenSpeaking } from "./words.js";

let timer = 0;
const open = new Set(); // jobs whose table is open

export function startBatch() {
  place("upload").addEventListener("submit", async event => {
    event.preventDefault();
    const form = new FormData();
    form.append("file", place("file").files[0]);
    form.append("relations", place("batch-relations").value);
    place("batch-error").textContent = "";
    try {
      await send("/api/jobs", form);
      place("file").value = "";
    } catch (error) {
      place("batch-error").textContent = error.message;
    }
    showJobs();
  });
  whenSpeaking(showJobs);
}

export async function showJobs() {
  clearTimeout(timer);
  if (place("batch").hidden) return;
  const jobs = await get("/api/jobs").catch(error => { place("batch-error").textContent = error.message; return null; });
  if (jobs) {
    const into = place("jobs");
    const focused = document.activeElement?.dataset?.key;
    into.replaceChildren();
    if (!jobs.length) make("p", say("no_jobs"), into, "muted");
    for (const job of jobs) show(job, into);
    if (focused) into.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
  }
  const busy = !jobs || jobs.some(job => ["waiting", "running"].includes(job.status));
  timer = setTimeout(showJobs, busy ? 1000 : 10000);
}

function show(job, into) {
  const card = make("div", null, into, "card job");
  card.dataset.status = job.status;
  make("h2", job.name, card);
  const facts = [say(`s_${job.status}`), `${job.records} ${say("records")}`];
  if (job.triples !== undefined) facts.push(`${job.triples} ${say("triples")}`);
  if (job.questions) facts.push(`${job.done} / ${job.questions}`);
  if (job.seconds_left !== null) facts.push(say("left", time(job.seconds_left)));
  make("p", facts.join(" · "), card, "muted");
  if (job.questions) {
    const bar = make("progress", null, card);
    bar.max = job.questions;
    bar.value = job.done;
    bar.setAttribute("aria-label", job.name);
  }
  if (job.error) make("p", job.error, card, "error");
  if (job.score) score(job, card);
  const row = make("div", null, card, "row");
  for (const kind of job.files) {
    const link = make("a", say(kind), row, "button");
    link.href = `/api/jobs/${job.id}/files/${kind}`;
    link.download = "";
    link.dataset.key = `${kind} ${job.id}`;
  }
  const act = (word, path, method) => {
    const one = button(say(word), row, async () => {
      one.disabled = true;
      const note = await send(`/api/jobs/${job.id}${path}`, undefined, method).then(() => "", error => error.message);
      place("batch-error").textContent = note;
      showJobs();
    });
    one.dataset.key = `${word} ${job.id}`;
  };
  if (job.status === "finished") act("to_graph", "/graph");
  if (["waiting", "running"].includes(job.status)) act("stop", "/stop");
  else act("remove", "", "DELETE");
  if (["stopped", "failed"].includes(job.status)) act("resume", "/resume");
}

function score(job, card) {
  const { precision, recall, f1, rouge2, contest } = job.score;
  const figures = { precision, recall, F1: f1, "ROUGE-2": rouge2, [say("score")]: contest };
  make("p", Object.entries(figures).map(([name, value]) => `${name} ${value.toFixed(4)}`).join("   "), card, "score");
  const details = make("details", null, card);
  details.open = open.has(job.id);
  details.addEventListener("toggle", () => (details.open ? open.add(job.id) : open.delete(job.id)));
  make("summary", say("by_relation"), details);
  const table = make("table", null, details);
  const titles = make("tr", null, make("thead", null, table));
  for (const word of ["relation", "gold", "predicted", "right"]) make("th", say(word), titles);
  make("th", "F1", titles);
  const body = make("tbody", null, table);
  for (const line of job.score.by_relation) {
    const row = make("tr", null, body);
    for (const value of [line.name, line.gold, line.predicted, line.right, line.f1.toFixed(3)]) make("td", value, row);
  }
}

function time(seconds) {
  return seconds < 90 ? `${Math.ceil(seconds)} s` : `${Math.round(seconds / 60)} min`;
}
