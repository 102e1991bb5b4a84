// A list of triples of one text that can be accepted, rejected, corrected and added to.

import { button, make, same, send } from "./dom.js";
import { say } from "./words.js";

// record: {text, topic, relations, wording}; the triples are lists of head, relation, tail.
// changed(right) is called with the triples that are right, once the server has them.
export function judgeList(into, record, triples, changed = () => {}) {
  const rows = triples.map(triple => ({ triple, verdict: "", to: null }));
  const list = make("ul", null, into, "triples");
  const tools = make("div", null, into, "row");
  const note = make("p", say("judge_hint"), into, "muted");
  note.setAttribute("role", "status");
  if (!rows.length) make("p", say("none"), into, "muted").classList.add("none");

  button(say("accept_rest"), tools, () => {
    for (const row of rows) if (!row.verdict) row.verdict = "accept";
    tell();
  });
  button(say("add_triple"), tools, () => edit(null));

  function said(row) { return row.to || row.triple; }

  function show() {
    list.replaceChildren();
    for (const row of rows) {
      const item = make("li", null, list, row.verdict);
      const [head, relation, tail] = said(row);
      if (!record.text.includes(head) || !record.text.includes(tail)) item.classList.add("completed-row");
      const text = make("span", null, item, "said");
      make("b", head, text);
      make("span", `— ${relation} →`, text, "relation");
      make("b", tail, text);
      if (item.classList.contains("completed-row")) make("span", say("completed"), item, "completed");
      const verdicts = make("span", null, item, "verdicts");
      for (const [verdict, sign] of [["accept", "✓"], ["reject", "✗"], ["correct", "✎"]]) {
        const one = button(sign, verdicts, () => {
          if (verdict === "correct") { edit(row, item); return; }
          row.verdict = verdict;
          row.to = null;
          tell();
        });
        one.title = say(verdict);
        one.setAttribute("aria-label", `${say(verdict)}: ${head} ${relation} ${tail}`);
        one.setAttribute("aria-pressed", row.verdict === verdict);
        one.dataset.verdict = verdict;
      }
    }
  }

  function edit(row, item) {
    list.querySelector(".edit")?.remove();
    const into = item || make("li", null, list);
    const form = make("form", null, into, "edit");
    const inputs = ["head", "relation", "tail"].map((name, at) => {
      const input = make("input", null, form);
      input.value = row ? said(row)[at] : "";
      input.placeholder = say(name);
      input.setAttribute("aria-label", say(name));
      input.required = true;
      input.maxLength = 1000;
      return input;
    });
    make("button", say("save"), form, "main");
    button(say("cancel"), form, () => show());
    form.addEventListener("submit", event => {
      event.preventDefault();
      const now = inputs.map(input => input.value.trim());
      if (now.some(part => !part)) return;
      if (!row) rows.push({ triple: now, verdict: "add", to: null });
      else if (row.verdict === "add") row.triple = now;
      else Object.assign(row, { verdict: "correct", to: now });
      tell();
    });
    inputs[0].focus();
  }

  async function tell() {
    show();
    const judged = rows.filter(row => row.verdict);
    const complete = judged.length === rows.length;
    const body = {
      text: record.text, topic: record.topic || "", relations: record.relations || [], wording: record.wording || "contest", complete,
      triples: judged.map(({ verdict, triple, to }) => ({ verdict, triple, to })),
    };
    try {
      const found = await send("/api/corrections", body);
      note.textContent = complete ? say("judged", found.records) : say("judge_hint");
      note.className = "muted";
      changed(found.right);
    } catch (error) {
      note.textContent = error.message;
      note.className = "error";
    }
  }

  async function recall() {
    const before = await send("/api/verdicts", { text: record.text }).catch(() => null);
    if (!before) return;
    for (const row of rows) {
      if (before.right.some(one => same(one, row.triple))) row.verdict = "accept";
      if (before.wrong.some(one => same(one, row.triple))) row.verdict = "reject";
    }
    for (const triple of before.right) {
      if (!rows.some(row => same(said(row), triple))) rows.push({ triple, verdict: "add", to: null });
    }
    if (before.complete && rows.every(row => row.verdict)) note.textContent = say("judged_before");
    show();
  }

  show();
  if (record.text) recall();
}
