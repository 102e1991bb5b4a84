// Ask: a text, its relations, and what the model says as it comes.

import { button, make, place, same, send, stream } from "./dom.js";
import { drawing } from "./draw.js";
import { judgeList } from "./judge.js";
import { say, whenSpeaking } from "./words.js";

const KEPT = "last question";
let topics = {};
let picture = null;
let stopping = null;

export function startAsk(options) {
  topics = options.topics;
  place("text").maxLength = options.bounds.text;
  picture = drawing(place("drawing"));
  fillTopics();
  place("topic").addEventListener("change", () => fillChips(relationsOf(place("topic").value), true));
  place("add").addEventListener("click", addFree);
  place("free").addEventListener("keydown", event => {
    if (event.key === "Enter") { event.preventDefault(); addFree(); }
  });
  place("text").addEventListener("keydown", event => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); place("question").requestSubmit(); }
  });
  place("question").addEventListener("submit", event => { event.preventDefault(); ask(); });
  place("stop").addEventListener("click", () => stopping?.abort());
  showExamples(options.examples);
  whenSpeaking(() => {
    fillTopics(place("topic").value);
    showExamples(options.examples);
    const last = read();
    if (last && last.done && !stopping) finish(last.question, last.done);
  });
  const before = read();
  fill(before ? before.question : { text: "", topic: "", relations: ["位于", "类型", "别名", "作者", "出生地点", "创建时间"] });
  if (before && before.done) finish(before.question, before.done);
}

function read() {
  try { return JSON.parse(sessionStorage.getItem(KEPT)); } catch { return null; }
}

function relationsOf(topic) {
  return topics[topic] ? topics[topic].relations : [...new Set(Object.values(topics).flatMap(one => one.relations))];
}

function fillTopics(chosen = "") {
  const select = place("topic");
  select.replaceChildren();
  make("option", say("any_topic"), select).value = "";
  for (const name of Object.keys(topics)) make("option", name, select).value = name;
  select.value = chosen;
}

function showExamples(examples) {
  const row = place("examples");
  row.replaceChildren();
  make("span", say("examples"), row, "muted");
  for (const one of examples) button(one.topic, row, () => { fill(one); place("go").focus(); });
}

function fill(question) {
  place("text").value = question.text;
  place("topic").value = topics[question.topic] ? question.topic : "";
  if (question.wording) place("wording").value = question.wording;
  fillChips([...new Set([...question.relations, ...relationsOf(place("topic").value)])], question.relations);
}

// pressed: true for all, or the names that are
function fillChips(names, pressed) {
  const chips = place("chips");
  chips.replaceChildren();
  for (const name of names) chip(name, pressed === true || pressed.includes(name));
}

function chip(name, pressed) {
  const one = button(name, place("chips"), () => one.setAttribute("aria-pressed", one.getAttribute("aria-pressed") !== "true"));
  one.setAttribute("aria-pressed", pressed);
  return one;
}

function addFree() {
  for (const name of place("free").value.split(/[,，、]/).map(part => part.trim()).filter(Boolean)) {
    const there = [...place("chips").children].find(one => one.textContent === name);
    if (there) there.setAttribute("aria-pressed", true);
    else chip(name, true);
  }
  place("free").value = "";
}

async function ask() {
  const relations = [...place("chips").querySelectorAll('[aria-pressed="true"]')].map(one => one.textContent);
  const question = { text: place("text").value, relations, topic: place("topic").value, wording: place("wording").value };
  place("ask-error").textContent = relations.length ? "" : say("no_relation");
  if (!relations.length || stopping) return;
  const found = [];
  const parts = [];
  stopping = new AbortController();
  working(true);
  place("triples").replaceChildren();
  place("raw").textContent = "";
  place("progress").textContent = say("asking");
  picture.clear();
  mark(question.text, found);
  sessionStorage.setItem(KEPT, JSON.stringify({ question }));
  try {
    await stream("/api/extract", question, stopping.signal, (event, data) => {
      if (event === "wait") place("progress").textContent = say("queued");
      if (event === "text") {
        parts[data.part] = data.whole ? data.text : (parts[data.part] || "") + data.text;
        place("raw").textContent = parts.filter(part => part !== undefined).join("\n");
      }
      if (event === "triples") {
        found.push(...data.triples.filter(triple => !found.some(one => same(one, triple))));
        show(question.text, found);
        list(found);
      }
      if (event === "part" && data.parts > 1) place("progress").textContent = say("part", data.done, data.parts);
      if (event === "done") finish(question, data);
      if (event === "error") throw new Error(data.detail);
    });
  } catch (error) {
    if (error.name === "AbortError") place("progress").textContent = say("stopped");
    else { place("progress").textContent = ""; place("ask-error").textContent = error.message; }
  } finally {
    stopping = null;
    working(false);
  }
}

function working(now) {
  place("go").disabled = now;
  place("stop").disabled = !now;
  place("triples").setAttribute("aria-busy", now);
  place("answer").open = now; // it is seen while it is written
}

function list(found) {
  const list = make("ul", null, null, "triples");
  for (const [head, relation, tail] of found) {
    const text = make("span", null, make("li", null, list), "said");
    make("b", head, text);
    make("span", `— ${relation} →`, text, "relation");
    make("b", tail, text);
  }
  place("triples").replaceChildren(list);
}

function show(text, triples) {
  mark(text, triples);
  for (const [head, relation, tail] of triples) {
    picture.add(head, relation, tail, { headAbsent: !text.includes(head), tailAbsent: !text.includes(tail) });
  }
}

function finish(question, data) {
  const triples = data.triples.map(one => [one.head, one.relation, one.tail]);
  sessionStorage.setItem(KEPT, JSON.stringify({ question, done: data }));
  picture.clear();
  show(question.text, triples);
  place("raw").textContent = data.output;
  const more = { length: say("length"), loop: say("loop") }[data.finish_reason];
  place("progress").textContent = [say("ended", triples.length, data.seconds), more, ...data.warnings].filter(Boolean).join(" · ");
  const into = place("triples");
  into.replaceChildren();
  judgeList(into, question, triples, right => { picture.clear(); show(question.text, right); });
  if (!triples.length) return;
  const row = make("div", null, into, "row");
  const keep = button(say("keep"), row, async () => {
    const body = { text: question.text, topic: question.topic, triples };
    const note = await send("/api/graph/records", body).then(() => say("kept"), error => error.message);
    make("span", note, row, "muted");
    keep.disabled = true;
  });
  keep.id = "keep";
}

// The text with heads and tails marked where they first stand; of two that overlap, the longer one.
function mark(text, triples) {
  const kinds = new Map();
  for (const [head, , tail] of triples) {
    for (const [name, kind] of [[head, "head"], [tail, "tail"]]) {
      if (name && text.includes(name)) kinds.set(name, kinds.has(name) && kinds.get(name) !== kind ? "both" : kind);
    }
  }
  const taken = [];
  for (const name of [...kinds.keys()].sort((one, two) => two.length - one.length)) {
    for (let start = text.indexOf(name); start >= 0; start = text.indexOf(name, start + 1)) {
      const end = start + name.length;
      if (taken.some(one => start < one.end && one.start < end)) continue;
      taken.push({ start, end, kind: kinds.get(name) });
      break;
    }
  }
  taken.sort((one, two) => one.start - two.start);
  const into = place("marked");
  into.replaceChildren();
  let at = 0;
  for (const { start, end, kind } of taken) {
    into.append(text.slice(at, start));
    make("mark", text.slice(start, end), into, kind);
    at = end;
  }
  into.append(text.slice(at));
}
