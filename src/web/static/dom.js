// Small tools: elements whose content is always text, requests, streams of events.

export const place = id => document.getElementById(id);

export function make(tag, text, into, name) {
  const element = document.createElement(tag);
  if (text !== undefined && text !== null) element.textContent = text;
  if (name) element.className = name;
  if (into) into.append(element);
  return element;
}

export function button(text, into, act, name) {
  const element = make("button", text, into, name);
  element.type = "button";
  element.addEventListener("click", act);
  return element;
}

export class Refused extends Error {}

function detail(found, response) {
  const said = found && found.detail;
  if (typeof said === "string") return said;
  if (Array.isArray(said)) return said.map(one => `${(one.loc || []).slice(1).join(".")}: ${one.msg}`).join("; ");
  return `${response.status} ${response.statusText}`;
}

async function refuse(response) {
  const found = await response.json().catch(() => null);
  throw new Refused(detail(found, response));
}

export async function get(path) {
  const response = await fetch(path);
  return response.ok ? response.json() : refuse(response);
}

export async function send(path, body, method = "POST") {
  const form = body instanceof FormData;
  const headers = body && !form ? { "Content-Type": "application/json" } : {};
  const response = await fetch(path, { method, headers, body: body && !form ? JSON.stringify(body) : body });
  return response.ok ? response.json() : refuse(response);
}

// Calls told(event, data) for each event of an answer, until it ends.
export async function stream(path, body, signal, told) {
  const headers = { "Content-Type": "application/json", Accept: "text/event-stream" };
  const response = await fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal });
  if (!response.ok) await refuse(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let left = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    left += value;
    const blocks = left.split("\n\n");
    left = blocks.pop();
    for (const block of blocks) {
      const lines = block.split("\n");
      const name = lines.find(line => line.startsWith("event: "));
      const data = lines.find(line => line.startsWith("data: "));
      if (name && data) told(name.slice(7), JSON.parse(data.slice(6)));
    }
  }
}

export const same = (one, other) => one.every((part, at) => part === other[at]);
