"use strict";
// Everything that a stranger wrote is set as text (textContent); no markup is ever made from it.

const byId = (id) => document.getElementById(id);
const data = (id) => JSON.parse(byId(id).textContent);
const head = data("head"), rows = data("rows");
byId("head").remove(); // the text stands in `rows` now; no need to keep it twice
byId("rows").remove();

function make(kind, name, ...content) {
  const element = document.createElement(kind);
  if (name) element.className = name;
  element.append(...content); // strings become text nodes
  return element;
}

// Names: what would reorder or break the line is shown instead of obeyed.
const visible = (name) => name.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]/gu, (character) =>
  /[\u200c\u200d]/.test(character) ? character : `\\u${character.codePointAt(0).toString(16).padStart(4, "0")}`);

function clock(seconds, digits = 0) {
  const units = Math.round(seconds * 10 ** digits), whole = Math.floor(units / 10 ** digits);
  const padded = (number, length) => String(number).padStart(length, "0");
  const rest = padded(whole % 60, 2) + (digits ? "." + padded(units % 10 ** digits, digits) : "");
  const minutes = Math.floor(whole / 60), hours = Math.floor(minutes / 60);
  return hours ? `${hours}:${padded(minutes % 60, 2)}:${rest}` : `${minutes}:${rest}`;
}

const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
const folded = (text) => text.normalize("NFKC").toLowerCase();
const ENDS = { stop: "finished", length: "cut off (length)", repetition: "repeats itself (repetition)" };

// ---- rows

let settings = {};
for (const [index, row] of rows.entries()) {
  settings = row.settings ??= row.error ? {} : settings; // a row without settings has those of the row before
  row.name = visible(row.name ?? row.id ?? "");
  const cut = row.name.lastIndexOf("/") + 1;
  row.folder = row.name.slice(0, Math.max(0, cut - 1)) || (cut ? "/" : ".");
  row.file = row.name.slice(cut);
  row.segments ??= [];
  row.scores = new Map(row.scores ?? []);
  const texts = row.segments.map((segment) => segment[2]);
  row.haystack = folded([row.name, row.id, row.question, row.text, ...texts, row.error].filter(Boolean).join("\n"));
  row.article = make("article", row.error ? "failed" : "");
  row.article.tabIndex = -1;
  row.article.id = `row-${index}`;
  row.article.setAttribute("aria-label", row.name);
}
const hasSheets = rows.some((row) => row.sheet !== undefined);
const rowOf = (article) => rows[article.id.slice(4)];

function fill(row) {
  const above = row.name.slice(0, row.name.length - row.file.length);
  const heading = make("h2", "", make("bdi", "folder", above), make("bdi", "", link(row)));
  const words = make("div", "words", heading, facts(row));
  if (row.question) words.append(directed("p", "question", row.question));
  if (row.text) words.append(...caption(row.text));
  if (row.error) words.append(directed("p", "error", row.error));
  if (row.hint) words.append(directed("p", "hint", row.hint));
  if (row.scores.size) words.append(scoreList(row));
  if (row.segments.length) words.append(timeLine(row));
  if (row.notes) words.append(make("ul", "remarks", ...row.notes.map((line) => make("li", "", line))));
  if (row.segments.length > 1) words.append(onDemand(plural(row.segments.length, "segment"), () => segmentList(row)));
  if (!row.error) words.append(onDemand("Settings", () => settingsList({ ...row.settings, usage: row.usage })));
  row.article.append(...(row.sheet === undefined ? [] : [picture(row)]), words);
  highlight();
}

/** The file's name, as a link to the video, from where its text begins on; never to what a browser would run. */
function link(row) {
  if (!row.link) return row.file;
  const element = make("a", "", row.file), start = row.segments[0]?.[0];
  element.href = row.link;
  if (!/^(https?|file):$/.test(element.protocol)) return row.file;
  if (start > 0 && !element.hash) element.hash = `t=${start}`;
  element.target = "_blank";
  element.rel = "noopener noreferrer";
  return element;
}

function directed(kind, name, text) {
  const element = make(kind, name, text);
  element.dir = "auto";
  return element;
}

function facts(row) {
  const how = row.sampling && row.sampling !== "uniform" ? `, ${row.sampling}` : "";
  const cut = row.share < 1 ? `, the middle ${Math.round(100 * row.share)} %` : "";
  const fit = row.fit === "pad" || row.fit === "stretch" ? `, ${row.fit}` : cut;
  const frames = row.frames && plural(row.frames, "frame") + how + fit;
  const long = row.duration && clock(row.duration, row.duration < 60 ? 1 : 0);
  const parts = [row.id, long, frames, row.settings.model];
  const line = make("p", "facts", parts.filter(Boolean).map((part) => visible(String(part))).join(" · "));
  const end = row.error ? "failed" : row.finish !== "stop" && row.finish && (ENDS[row.finish] ?? row.finish);
  if (end) line.append(line.textContent && " · ", make("b", "", end));
  return line;
}

function caption(text) {
  const paragraph = directed("p", "caption", text);
  if (text.length < 700 && text.split("\n").length < 8) return [paragraph];
  const more = make("button", "", "Show all of it");
  paragraph.classList.add("long");
  more.type = "button";
  more.onclick = () => { more.textContent = paragraph.classList.toggle("long") ? "Show all of it" : "Show less"; };
  return [paragraph, more];
}

function scoreList(row) {
  const likely = [...row.scores].sort(([, a], [, b]) => b - a).slice(0, 10);
  return make("ul", "scores", ...likely.map(([choice, score]) => {
    const bar = make("i");
    bar.style.width = `${100 * score}%`;
    return make("li", "", directed("bdi", "", visible(choice)), make("span", "bar", bar), score.toFixed(3));
  }));
}

function onDemand(title, content) {
  const details = make("details", "", make("summary", "", title));
  details.addEventListener("toggle", () => { details.append(content()); highlight(); }, { once: true });
  return details;
}

function settingsList(values) {
  const list = make("dl");
  const add = (name, value) => {
    if (value === null || value === undefined || value === "") return;
    if (typeof value === "object" && !Array.isArray(value)) {
      for (const [key, inner] of Object.entries(value)) add(name ? `${name}.${key}` : key, inner);
    } else list.append(make("dt", "", name), make("dd", "", typeof value === "string" ? value : JSON.stringify(value)));
  };
  add("", values);
  return list;
}

// ---- pictures: base64 below this script, read when a row comes near the screen

function picture(row) {
  const figure = make("figure", "", make("p", "", "…"));
  row.showPicture = () => {
    const source = byId(`sheet-${row.sheet}`);
    if (!source?.nextSibling && document.readyState === "loading") return; // not there yet, or only its beginning
    delete row.showPicture;
    if (!source) return figure.replaceChildren(make("p", "", "The page ends before this picture"));
    if ("gone" in source.dataset) {
      return figure.replaceChildren(make("p", "", `No picture: ${visible(JSON.parse(source.textContent))}`));
    }
    const image = make("img");
    image.alt = `Frames of ${row.file}`;
    image.decoding = "async";
    image.src = `data:image/jpeg;base64,${source.textContent}`;
    figure.replaceChildren(image);
  };
  row.showPicture();
  return figure;
}

const near = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    near.unobserve(target);
    fill(rowOf(target));
  }
}, { rootMargin: "1200px 0px" });

// ---- time line: one slider, however many segments

function timeLine(row) {
  const first = Math.min(0, ...row.segments.map((segment) => segment[0]));
  const last = Math.max(row.duration ?? 0, ...row.segments.map((segment) => segment[1]));
  const span = last - first || 1, digits = span < 60 ? 1 : 0;
  const place = (seconds) => `${(100 * (seconds - first)) / span}%`;
  const track = make("div", "track"), said = make("p", "said");
  const bars = row.segments.map(([start, end]) => {
    const bar = make("i");
    bar.style.left = place(start);
    bar.style.width = `${(100 * (end - start)) / span}%`;
    return bar;
  });
  const ticks = (row.times ?? []).filter((seconds) => seconds >= first && seconds <= last).map((seconds) => {
    const tick = make("s");
    tick.style.left = place(seconds);
    return tick;
  });
  let chosen = -1;
  const choose = (index) => {
    if (index === chosen || index < 0 || index >= bars.length) return;
    bars[chosen]?.classList.remove("on");
    bars[(chosen = index)].classList.add("on");
    const [start, end, text] = row.segments[index], time = `${clock(start, digits)}–${clock(end, digits)}`;
    said.replaceChildren(make("time", "", time), directed("bdi", "", text));
    track.setAttribute("aria-valuenow", index + 1);
    track.setAttribute("aria-valuetext", `${time}: ${text}`);
    highlight();
  };
  row.showFound = (terms) => {
    const found = row.segments.map((segment) => terms.some((term) => folded(segment[2]).includes(term)));
    bars.forEach((bar, index) => bar.classList.toggle("found", found[index]));
    if (found.includes(true) && !found[chosen]) choose(found.indexOf(true));
  };
  const atPointer = (event) => {
    const box = track.getBoundingClientRect(), seconds = first + (span * (event.clientX - box.left)) / box.width;
    const away = row.segments.map(([start, end]) => Math.max(start - seconds, seconds - end, 0));
    choose(away.indexOf(Math.min(...away)));
  };
  const next = () => chosen + 1, before = () => chosen - 1;
  const keys = { ArrowRight: next, ArrowUp: next, ArrowLeft: before, ArrowDown: before };
  Object.assign(keys, { Home: () => 0, End: () => bars.length - 1 });
  track.addEventListener("pointermove", atPointer);
  track.addEventListener("pointerdown", atPointer);
  track.addEventListener("keydown", (event) => {
    if (!(event.key in keys) || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    choose(keys[event.key]());
  });
  track.tabIndex = 0;
  const about = { role: "slider", "aria-label": "Segments", "aria-valuemin": 1, "aria-valuemax": bars.length };
  for (const [name, value] of Object.entries(about)) track.setAttribute(name, value);
  track.append(...bars, ...ticks);
  choose(0);
  row.showFound(terms);
  const alone = row.segments.length === 1 && row.segments[0][2] === row.text; // the caption says it already
  const ends = make("div", "ends", make("span", "", clock(first, digits)), make("span", "", clock(last, digits)));
  return make("div", "time", track, ends, ...(alone ? [] : [said]));
}

function segmentList(row) {
  const digits = (row.duration ?? 0) < 60 ? 1 : 0;
  return make("ol", "list", ...row.segments.map(([start, end, text]) =>
    make("li", "", make("time", "", `${clock(start, digits)}–${clock(end, digits)}`), directed("span", "", text))));
}
