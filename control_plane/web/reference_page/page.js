// Shows /openapi.json and /asyncapi.json, and sends requests to this server. Texts reach the page as text, never as HTML.

const $ = (id) => document.getElementById(id);
const LONGEST_SHOWN = 200_000;

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== undefined && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== undefined));
  return made;
}

function resolved(schema, root) {
  let found = schema ?? {};
  while (found.$ref) found = found.$ref.slice(2).split("/").reduce((node, key) => node[key], root);
  return found;
}

function typeOf(schema, root) {
  if (schema?.$ref) return schema.$ref.split("/").pop();
  const found = resolved(schema, root);
  if (found.enum) return found.enum.map((value) => JSON.stringify(value)).join(" | ");
  if (found.anyOf) return found.anyOf.map((part) => typeOf(part, root)).join(" | ");
  if (found.type === "array") return `${typeOf(found.items, root)}[]`;
  const bounds = [["≥", "minimum"], ["≤", "maximum"], ["min. length", "minLength"], ["max. length", "maxLength"]]
    .filter(([, key]) => found[key] !== undefined).map(([sign, key]) => `${sign} ${found[key]}`);
  return [found.format ?? found.type ?? "anything", ...bounds].join(", ");
}

function example(schema, root, depth = 0) {
  const found = resolved(schema, root);
  if (found.default !== undefined && found.default !== null) return found.default;
  if (found.enum) return found.enum[0];
  if (found.anyOf) return example(found.anyOf[0], root, depth);
  if (found.type === "array") return depth < 4 && found.minItems ? [example(found.items, root, depth + 1)] : [];
  if (found.type === "object") {
    const required = depth < 4 ? found.required ?? [] : [];
    return Object.fromEntries(required.map((name) => [name, example(found.properties[name], root, depth + 1)]));
  }
  return { string: "", integer: found.minimum ?? 0, number: found.minimum ?? 0, boolean: false }[found.type] ?? null;
}

function fields(schema, root) {
  const found = resolved(schema, root);
  const names = Object.keys(found.properties ?? {});
  if (!names.length) return element("p", { class: "says" }, "No fields.");
  const rows = names.map((name) => element("tr", {},
    element("td", {}, element("code", {}, name)),
    element("td", {}, typeOf(found.properties[name], root)),
    element("td", {}, found.required?.includes(name) ? "required" : "")));
  return element("table", {}, element("tbody", {}, ...rows));
}

function headersWithKey() {
  const key = $("key").value.trim();
  return key ? { authorization: `Bearer ${key}` } : {};
}

async function send(method, path, inputs, body, output, signal) {
  const query = new URLSearchParams();
  let target = path;
  for (const { parameter, input } of inputs) {
    const value = input.value.trim();
    if (parameter.in === "path") target = target.replace(`{${parameter.name}}`, encodeURIComponent(value));
    else if (value) query.append(parameter.name, value);
  }
  if ([...query].length) target += `?${query}`;
  const headers = headersWithKey();
  if (body !== undefined) headers["content-type"] = "application/json";
  const began = performance.now();
  output.textContent = `${method} ${target}\n`;
  try {
    const response = await fetch(target, { method, headers, body, signal, credentials: "omit", cache: "no-store" });
    output.append(`${response.status} ${response.statusText}, ${Math.round(performance.now() - began)} ms\n\n`);
    const reader = response.body?.pipeThrough(new TextDecoderStream()).getReader();
    const whole = response.headers.get("content-type")?.startsWith("application/json");
    let text = "";
    for (let part = await reader?.read(); part && !part.done; part = await reader.read()) {
      text += part.value;
      if (!whole) output.append(part.value);
      if (text.length > LONGEST_SHOWN) { output.append("\n... (more is not shown)"); await reader.cancel(); return; }
    }
    if (whole) output.append(JSON.stringify(JSON.parse(text), null, 2));
  } catch (error) {
    output.append(error.name === "AbortError" ? "\nstopped" : `\nnot answered: ${error.message}`);
  }
}

function attempt(method, path, operation, parameters, root) {
  const inputs = parameters.map((parameter) => {
    const value = parameter.name === "project" ? $("project").value : parameter.schema.default ?? "";
    return { parameter, input: element("input", { value, "aria-label": parameter.name, spellcheck: "false" }) };
  });
  const schema = operation.requestBody?.content["application/json"].schema;
  const body = schema && element("textarea", { "aria-label": "request body", spellcheck: "false" });
  if (body) body.value = JSON.stringify(example(schema, root), null, 2);
  const output = element("pre", { hidden: true, "aria-live": "polite" });
  let running = null;
  const stop = element("button", { type: "button", hidden: true, onclick: () => running?.abort() }, "Stop");
  const form = element("form", { onsubmit: async (event) => {
    event.preventDefault();
    running?.abort();
    const mine = running = new AbortController();
    output.hidden = stop.hidden = false;
    await send(method, path, inputs, body?.value, output, mine.signal);
    if (running === mine) stop.hidden = true;
  } });
  if (inputs.length) {
    form.append(element("table", {}, element("tbody", {}, ...inputs.map(({ parameter, input }) => element("tr", {},
      element("td", {}, element("code", {}, parameter.name), parameter.required ? "" : " (optional)"),
      element("td", {}, input),
      element("td", {}, parameter.description ?? typeOf(parameter.schema, root)))))));
  }
  if (body) form.append(element("p", {}, "Body"), fields(schema, root), body);
  form.append(element("button", { type: "submit" }, "Send"), " ", stop, output);
  return form;
}

function answers(operation, root) {
  const rows = Object.entries(operation.responses).map(([status, response]) => {
    const content = Object.entries(response.content ?? {});
    const shape = content.map(([kind, { schema }]) => schema.$ref ? typeOf(schema, root) : kind).join(", ");
    return element("tr", {}, element("td", {}, status), element("td", {}, response.description), element("td", {}, shape));
  });
  return element("details", {}, element("summary", {}, "Answers"),
    element("div", {}, element("table", {}, element("tbody", {}, ...rows))));
}

/** A box that is filled when it is opened first. */
function box(searched, summary, fill) {
  const content = element("div");
  const made = element("details", { "data-searched": searched.toLowerCase() }, element("summary", {}, ...summary), content);
  made.addEventListener("toggle", () => { if (made.open && !content.hasChildNodes()) content.append(...fill()); });
  return made;
}

function showOperations(root) {
  const groups = new Map();
  for (const [path, item] of Object.entries(root.paths)) {
    for (const [name, operation] of Object.entries(item)) {
      if (name === "parameters") continue;
      const method = name.toUpperCase();
      const parameters = [...item.parameters ?? [], ...operation.parameters ?? []];
      const made = box(`${method} ${path} ${operation.operationId} ${operation.summary}`,
        [element("span", { class: "method" }, method), element("code", {}, path), " ",
          element("span", { class: "says" }, operation.summary)],
        () => [operation.description && element("p", {}, operation.description),
          attempt(method, path, operation, parameters, root), answers(operation, root)].filter(Boolean));
      const tag = operation.tags[0];
      groups.set(tag, [...groups.get(tag) ?? [], made]);
    }
  }
  for (const [tag, boxes] of groups) $("operations").append(element("section", {}, element("h3", {}, tag), ...boxes));
}

function showMessages(root) {
  for (const operation of Object.values(root.operations)) {
    const boxes = operation.messages.map((reference) => {
      const message = resolved(resolved(reference, root), root);
      return box(`${message.name} ${message.summary}`,
        [element("code", {}, message.name), " ", element("span", { class: "says" }, message.summary)],
        () => [fields(message.payload, root), element("pre", {}, JSON.stringify(example(message.payload, root), null, 2))]);
    });
    $("messages").append(element("section", {}, element("h3", {}, operation.summary), ...boxes));
  }
}

$("credential").addEventListener("submit", (event) => event.preventDefault());
$("find").addEventListener("input", () => {
  const words = $("find").value.toLowerCase().split(/\s+/);
  for (const section of document.querySelectorAll("main div > section")) {
    const boxes = [...section.querySelectorAll(":scope > details")];
    for (const each of boxes) each.hidden = !words.every((word) => each.dataset.searched.includes(word));
    section.hidden = boxes.every((each) => each.hidden);
  }
});

const [http, socket] = await Promise.all(["/openapi.json", "/asyncapi.json"].map(async (at) => (await fetch(at)).json()));
$("version").textContent = http.info.version;
showOperations(http);
showMessages(socket);
