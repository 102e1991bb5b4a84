// The OpenAPI document as a page: every path, what it takes and gives, and a form to try it.

import { button, get, make, place } from "./dom.js";

const api = await get("/openapi.json");
const into = place("paths");
make("p", api.info.title, into, "muted");

// A schema as an example value, its references followed.
function example(schema, depth = 0) {
  if (!schema || depth > 6) return null;
  if (schema.$ref) return example(api.components.schemas[schema.$ref.split("/").pop()], depth + 1);
  if (schema.default !== undefined) return schema.default;
  if (schema.enum) return schema.enum[0];
  if (schema.const !== undefined) return schema.const;
  if (schema.anyOf) return example(schema.anyOf[0], depth + 1);
  if (schema.type === "object" || schema.properties) {
    return Object.fromEntries(Object.entries(schema.properties || {}).map(([name, one]) => [name, example(one, depth + 1)]));
  }
  if (schema.type === "array") return Array.from({ length: schema.minItems || 1 }, () => example(schema.items, depth + 1));
  return { string: schema.description || "…", integer: 1, number: 0.5, boolean: false }[schema.type] ?? null;
}

for (const [path, methods] of Object.entries(api.paths)) {
  for (const [method, about] of Object.entries(methods)) {
    const card = make("article", null, into, "card");
    const title = make("h2", null, card);
    make("span", `${method.toUpperCase()} `, title, "relation");
    make("span", path, title);
    make("p", about.description || about.summary, card);
    const inputs = new Map();
    for (const one of about.parameters || []) {
      const label = make("label", `${one.name} (${one.in})${one.required ? " *" : ""}`, card);
      const input = make("input", null, label);
      input.value = one.required ? example(one.schema) : "";
      inputs.set(one, input);
    }
    const content = about.requestBody?.content || {};
    const json = content["application/json"];
    let body = null;
    if (json) {
      body = make("textarea", null, make("label", "JSON", card));
      body.value = JSON.stringify(example(json.schema), null, 2);
      body.rows = 8;
    } else if (Object.keys(content).length) {
      make("pre", JSON.stringify(example(Object.values(content)[0].schema), null, 2), card);
    }
    make("p", Object.entries(about.responses).map(([code, one]) => `${code} ${one.description}`).join(" · "), card, "muted");
    if (Object.keys(content).length && !json) continue;
    const answer = make("pre", "", null);
    button("Try", make("div", null, card, "row"), async () => {
      let filled = path;
      const query = new URLSearchParams();
      const headers = body ? { "Content-Type": "application/json" } : {};
      for (const [one, input] of inputs) {
        if (one.in === "path") filled = filled.replace(`{${one.name}}`, encodeURIComponent(input.value));
        else if (one.in === "query" && input.value) query.set(one.name, input.value);
        else if (one.in === "header" && input.value) headers[one.name] = input.value;
      }
      const asked = query.size ? `${filled}?${query}` : filled;
      const response = await fetch(asked, { method: method.toUpperCase(), headers, body: body?.value });
      answer.textContent = `${response.status}\n${(await response.text()).slice(0, 20000)}`;
      card.append(answer);
    }, "main");
  }
}
