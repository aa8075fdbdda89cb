// The page of the server: it calls the API that every client calls, and shows texts as text.

const $ = (id) => document.getElementById(id);
const wait = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));

/** An element with attributes and children; strings become text, never markup. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

const say = (id, text, isWrong = false) => {
  $(id).textContent = text;
  $(id).classList.toggle("wrong", isWrong);
};

class Refused extends Error {
  constructor(status, error, retryAfter) {
    super(error?.message ?? `the server answered ${status}`);
    this.status = status;
    this.code = error?.code;
    this.retryAfter = retryAfter;
  }
}

/** Calls the API; waits and asks again while the server is full or starting. */
async function call(method, path, body, options = {}) {
  for (;;) {
    const headers = { ...options.headers };
    if ($("key").value) headers.authorization = `Bearer ${$("key").value}`;
    const isFile = body instanceof Blob;
    if (body !== undefined && !options.raw) {
      headers["content-type"] = isFile ? "application/octet-stream" : "application/json";
    }
    const response = await fetch(path, {
      method,
      headers,
      body: body === undefined || isFile || options.raw ? body : JSON.stringify(body),
      signal: options.signal,
    });
    if (response.ok) return response;
    const content = await response.json().catch(() => ({}));
    const seconds = Number(response.headers.get("retry-after"));
    if (![429, 503].includes(response.status) || !seconds || options.once) {
      throw new Refused(response.status, content.error, seconds);
    }
    for (let left = seconds; left > 0; left--) {
      say("state", `${content.error?.message ?? "busy"} (${left} s)`);
      await wait(1);
    }
    say("state", "");
  }
}

let tasks = [];
const task = (name) => tasks.find((each) => each.id === name);

async function loadTasks() {
  const { data } = await (await call("GET", "v1/models")).json();
  tasks = data;
  const chosen = [$("task").value, $("other").value];
  for (const [i, select] of [$("task"), $("other")].entries()) {
    const names = tasks.map((each) => each.id).sort((a, b) => !task(a).parent - !task(b).parent);
    select.replaceChildren(...names.map((name) => {
      const label = task(name).parent ? name : `${name} (backbone alone)`;
      return make("option", { value: name }, label);
    }));
    const backbone = tasks.find((each) => !each.parent)?.id;
    select.value = task(chosen[i]) ? chosen[i] : i ? backbone : names[0];
  }
  const rows = tasks.map((each) => make("tr", {},
    make("td", {}, each.id),
    make("td", { className: "words" }, each.labels.join(", ") || "text"),
    make("td", { className: "number" }, String(each.soft_prompt_tokens)),
    make("td", {}, make("code", {}, each.parent ? each.root.slice(0, 12) : "")),
    make("td", {}, ...(each.parent ? [make("button", {
      className: "quiet", type: "button", ariaLabel: `Remove ${each.id}`,
      onclick: () => change(() => call("DELETE", `v1/models/${encodeURIComponent(each.id)}`),
        `Removed ${each.id}.`, `Remove the task ${each.id}?`),
    }, "Remove")] : []))));
  $("tasks").tBodies[0].replaceChildren(...rows);
  say("state", `${tasks.length} models on one backbone`);
  await showTask();
}

let shownWords = null;
async function showTask() {
  const chosen = task($("task").value);
  if (!chosen) return;
  const kind = chosen.labels.length ? `chooses among ${chosen.labels.length} labels` : "writes text";
  say("about", `${chosen.soft_prompt_tokens} vectors; ${kind}` +
    (chosen.parent ? `; digest ${chosen.root.slice(0, 12)}` : ""));
  const key = `${chosen.id}@${chosen.root}`;
  if (shownWords === key) return;
  shownWords = key;
  const path = `v1/models/${encodeURIComponent(chosen.id)}/neighbours`;
  let vectors = [];
  try {
    ({ vectors } = await (await call("GET", path)).json());
  } catch (error) {
    $("words").replaceChildren(make("p", {}, error.message));
    return;
  }
  if (shownWords !== key) return;
  if (!vectors.length) return $("words").replaceChildren(make("p", {}, "No prompt, no vectors."));
  const rows = vectors.map((words, i) => make("tr", {}, make("td", { className: "number" }, String(i)),
    make("td", { className: "words" },
      words.map((each) => `${each.word.replace("▁", "")} ${each.cosine.toFixed(2)}`).join(" · "))));
  $("words").replaceChildren(make("table", {},
    make("thead", {}, make("tr", {}, make("th", {}, "Vector"), make("th", {}, "Words, with cosines"))),
    make("tbody", {}, ...rows)));
}

/** What a task answers to a text, as an element; `labels` are for a task that has none. */
async function answer(name, text, labels) {
  const words = task(name).labels.length ? undefined : labels;
  if (task(name).labels.length || labels?.length) {
    const body = { model: name, input: text, ...(words && { labels: words }) };
    const response = await call("POST", "v1/classify", body);
    const [result] = (await response.json()).data;
    const rows = result.labels.map((label, i) => {
      const p = result.probs[i];
      const votes = task(name).prompts > 1 ? ` · ${result.votes[i]} votes` : "";
      return make("tr", { className: label === result.label ? "best" : "" }, make("td", {}, label),
        make("td", { className: "bar" }, make("meter", { min: 0, max: 1, value: p, ariaLabel: label })),
        make("td", { className: "number", title: `log p ${result.logprobs[i]}`,
          "data-p": String(p) }, `${(100 * p).toFixed(1)} %${votes}`));
    });
    return [make("table", {}, make("tbody", {}, ...rows)), response];
  }
  const body = { model: name, prompt: text, max_tokens: 16, logprobs: 0 };
  const response = await call("POST", "v1/completions", body);
  const [choice] = (await response.json()).choices;
  const total = choice.logprobs.token_logprobs.reduce((a, b) => a + b, 0);
  return [make("div", {}, make("p", { className: "generated" }, choice.text || "(no text)"),
    make("p", {}, `log p of its tokens ${total.toFixed(2)}; ended by ${choice.finish_reason}`)), response];
}

async function ask(event) {
  event?.preventDefault();
  const text = $("text").value;
  if (!text) return;
  const name = $("task").value;
  const labels = task(name).labels;
  say("batch", "Asking …");
  const show = async (place, model, words) => {
    try {
      const [element, response] = await answer(model, text, words);
      $(place).replaceChildren(element);
      return response;
    } catch (error) {
      $(place).replaceChildren(make("p", { className: "wrong" }, error.message));
      if (error.status === 404) loadTasks();
      return null;
    }
  };
  $("mine-title").textContent = name;
  const [response] = await Promise.all([
    show("mine", name, undefined), show("theirs", $("other").value, labels)]);
  const facts = (header) => Number(response?.headers.get(header));
  const count = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;
  say("batch", !response ? "" : `Answered together with ${count(facts("x-batch-rows") - 1, "other row")}, ` +
    `${count(facts("x-batch-tasks"), "task")} in the batch, after ${facts("x-queue-ms")} ms in the queue.`);
}

/** The rows of a CSV as arrays of cells (RFC 4180). */
function parseCsv(text) {
  const rows = [[""]];
  let quoted = false;
  for (let i = 0; i < text.length; i++) {
    const letter = text[i], row = rows.at(-1);
    if (quoted) {
      if (letter !== '"') row[row.length - 1] += letter;
      else if (text[i + 1] === '"') row[row.length - 1] += text[++i];
      else quoted = false;
    } else if (letter === '"') quoted = true;
    else if (letter === ",") row.push("");
    else if (letter === "\n") rows.push([""]);
    else if (letter !== "\r") row[row.length - 1] += letter;
  }
  return rows.filter((row) => row.length > 1 || row[0] !== "");
}

/** A cell of a CSV; a spreadsheet would compute one that begins like a formula. */
function csvCell(value) {
  const text = /^[=+\-@\t\r]/.test(value) && Number.isNaN(Number(value)) ? `'${value}` : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

let table = null;
let stopping = null;

async function openCsv(file) {
  const [header, ...rows] = parseCsv((await file.text()).replace(/^\uFEFF/, ""));
  if (!rows.length) return say("file-state", `${file.name}: has no rows below its header`, true);
  table = { header, rows, name: file.name };
  const options = () => header.map((name, i) => make("option", { value: String(i) }, name));
  const guess = (...names) => header.findIndex((name) => names.includes(name.toLowerCase()));
  $("text-column").replaceChildren(...options());
  $("text-column").value = String(Math.max(0, guess("text", "input", "sentence")));
  $("task-column").replaceChildren(make("option", { value: "" }, "the task chosen above"), ...options());
  const taskColumn = guess("task", "model");
  $("task-column").value = taskColumn < 0 ? "" : String(taskColumn);
  $("columns").hidden = false;
  $("download").hidden = true;
  say("file-state", `${file.name}: ${rows.length} rows`);
}

async function runCsv() {
  const { header, rows, name } = table;
  const [textAt, taskAt] = [$("text-column").value, $("task-column").value];
  const chosen = $("task").value;
  const answers = new Array(rows.length);
  stopping = new AbortController();
  $("run").disabled = true;
  $("stop").hidden = $("progress").hidden = false;
  $("download").hidden = true;
  let done = 0, wrong = 0;
  try {
    for (let start = 0; start < rows.length; start += 1000) {
      const lines = rows.slice(start, start + 1000).map((row) => JSON.stringify(
        { model: taskAt === "" ? chosen : row[taskAt] ?? "", input: row[textAt] ?? "", truncate: true }));
      const response = await call("POST", "v1/rows", lines.join("\n"), {
        raw: true, headers: { "content-type": "application/x-ndjson" }, signal: stopping.signal });
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let rest = ""; ;) {
        const { value, done: ended } = await reader.read();
        const parts = (rest + (value ?? "")).split("\n");
        rest = parts.pop();
        for (const part of parts.filter(Boolean)) {
          const each = JSON.parse(part);
          answers[start + each.index] = each;
          done++;
          wrong += "error" in each;
        }
        $("progress").value = done / rows.length;
        say("file-state", `${done} of ${rows.length} rows` + (wrong ? `, ${wrong} with an error` : ""));
        if (ended) break;
      }
    }
  } catch (error) {
    say("file-state", stopping.signal.aborted ? `Stopped after ${done} rows.` : error.message, true);
  }
  const lines = [[...header, "prediction", "probability", "error"], ...rows.map((row, i) => {
    const each = answers[i] ?? {};
    const best = each.probs ? Math.max(...each.probs) : "";
    return [...row, each.label ?? each.text ?? "", best, each.error?.message ?? ""];
  })].map((row) => row.map(csvCell).join(","));
  URL.revokeObjectURL($("download").href);
  const blob = new Blob([lines.join("\r\n"), "\r\n"], { type: "text/csv" });
  Object.assign($("download"), { href: URL.createObjectURL(blob), download: `answers-${name}`, hidden: !done });
  $("run").disabled = false;
  $("stop").hidden = true;
}

async function change(work, message, question) {
  if (question && !confirm(question)) return;
  say("change-state", "Working … a task is usable once its programs are compiled.");
  try {
    await work();
    await loadTasks();
    say("change-state", message);
  } catch (error) {
    say("change-state", error.message, true);
  }
}

function add(event) {
  event.preventDefault();
  const name = $("name").value;
  const labels = $("labels").value.split(",").map((word) => word.trim()).filter(Boolean);
  const query = new URLSearchParams(labels.map((word) => ["label", word])).toString();
  const path = `v1/models/${encodeURIComponent(name)}${query && `?${query}`}`;
  change(() => call("PUT", path, $("prompt").files[0]), `${name} is served.`);
}

$("ask").addEventListener("submit", ask);
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) ask(event);
});
$("task").addEventListener("change", showTask);
$("other").addEventListener("change", () => $("mine").hasChildNodes() && ask());
$("csv").addEventListener("change", () => $("csv").files[0] && openCsv($("csv").files[0]));
for (const type of ["dragover", "dragleave", "drop"]) {
  $("drop").addEventListener(type, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", type === "dragover");
    if (type === "drop" && event.dataTransfer.files[0]) openCsv(event.dataTransfer.files[0]);
  });
}
$("run").addEventListener("click", runCsv);
$("stop").addEventListener("click", () => stopping?.abort());
$("add").addEventListener("submit", add);
$("key").addEventListener("change", () => loadTasks().catch((error) => say("state", error.message, true)));

/** Tasks that others add or remove appear without a reload. */
async function watch() {
  for (;;) {
    try {
      const { data } = await (await call("GET", "v1/models")).json();
      const names = (list) => list.map((each) => each.id + each.root).join();
      if (names(data) !== names(tasks)) await loadTasks();
    } catch (error) {
      say("state", error.status === 401 ? "Give a key below." : `Not connected: ${error.message}`, true);
    }
    await wait(5);
  }
}
watch();
