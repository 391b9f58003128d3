// The page as a whole: its head, what the filters offer, keys, and the list itself.

function choices(id, all, options) {
  const select = byId(id);
  const chosen = select.value;
  const offered = options.map(([value, label, count]) => new Option(`${label} (${count.toLocaleString("en")})`, value));
  select.replaceChildren(new Option(all, ""), ...offered);
  select.value = options.some(([value]) => value === chosen) ? chosen : "";
  select.hidden = !options.length || (options.length === 1 && options[0][2] === rows.length);
}

function counted(values) {
  const counts = new Map(); // not an object: a folder may be called __proto__
  for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
  return counts;
}

/** Each folder, and those above it, except one that holds everything. */
function foldersAbove(folder) {
  const parts = folder.split("/");
  return folder === "/" ? ["/"] : parts.map((_, index) => parts.slice(0, index + 1).join("/")).filter(Boolean);
}

function offerChoices() {
  const folders = [...counted(rows.flatMap((row) => foldersAbove(row.folder)))].filter(([, count]) => count < rows.length);
  const named = (folder) => (folder === "." ? "this folder" : folder);
  choices("folder", "Folders", folders.sort().map(([folder, count]) => [folder, named(folder), count]));
  const labels = new Map(Object.entries({ ...ENDS, failed: "failed", unknown: "end not recorded" }));
  const states = [...counted(rows.map(stateOf))].map(([state, count]) => [state, labels.get(state) ?? state, count]);
  const gone = rows.filter(isGone).length;
  if (gone) states.push(["gone", "video can't be read any more", gone]);
  choices("state", "Results", states);
  const withNotes = rows.filter((row) => row.notes).length;
  const without = rows.length - withNotes;
  choices("notes", "Notes", withNotes ? [["with", "with notes", withNotes], ["without", "without notes", without]] : []);
}

function offerOrders() {
  const known = [...new Set(rows.flatMap((row) => [...row.scores.keys()]))].slice(0, 100);
  const offered = known.flatMap((choice) => [["-", "highest first"], ["+", "lowest first"]].map(([sign, words]) =>
    new Option(`${visible(choice)}: ${words}`, sign + choice)));
  const names = [new Option("Name: A to Z", "az"), new Option("Name: Z to A", "za")];
  byId("sort").replaceChildren(new Option("Order of the file", ""), ...names, ...offered);
  byId("where").placeholder = known.length ? `${visible(known[0])}>0.8` : "";
  byId("sort").hidden = rows.length < 2;
  byId("where").hidden = !known.length;
}

function summarize() {
  const results = rows.filter((row) => !row.error), failed = rows.length - results.length;
  const videos = new Map(results.map((row) => [row.name, row.duration ?? 0]));
  const seconds = [...videos.values()].reduce((sum, duration) => sum + duration, 0);
  const models = [...new Set(results.map((row) => visible(String(row.settings.model ?? ""))))].filter(Boolean);
  const asked = results.length === videos.size ? "" : `${plural(results.length, "result")} on `;
  document.title = `${visible(head.name)} · llvid`;
  byId("title").textContent = visible(head.name);
  byId("summary").textContent = [
    asked + plural(videos.size, "video"), seconds && `${clock(seconds)} in all`,
    failed && `${failed.toLocaleString("en")} failed`,
    models.length <= 3 ? models.join(", ") : plural(models.length, "model"),
  ].filter(Boolean).join(" · ");
  byId("remarks").append(...head.notes.map((line) => make("li", "", visible(line))));
  byId("made").textContent = `Made by llvid ${head.version}, ${head.made}`;
}

function step(by) {
  const shown = order.filter((row) => !row.article.hidden);
  const at = shown.findIndex((row) => row.article.contains(document.activeElement));
  const next = at < 0 ? shown.find((row) => row.article.getBoundingClientRect().bottom > 120) : shown[at + by];
  next?.article.focus({ preventScroll: true });
  next?.article.scrollIntoView({ block: "start" });
}

document.addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  if (event.key === "Escape" && event.target === byId("search")) byId("search").value = "", apply();
  if (event.target.closest?.("input, select")) return;
  const action = { "/": () => byId("search").select(), j: () => step(1), k: () => step(-1) }[event.key];
  if (action) event.preventDefault(), action();
});
let waiting = 0;
byId("search").addEventListener("input", () => {
  cancelAnimationFrame(waiting);
  waiting = requestAnimationFrame(apply);
});
byId("where").addEventListener("input", apply);
byId("sort").addEventListener("change", sort);
byId("tools").addEventListener("change", apply);
byId("tools").addEventListener("submit", (event) => event.preventDefault());
byId("clear").addEventListener("click", () => {
  for (const field of byId("tools").elements) if ("value" in field && field.id) field.value = "";
  apply();
  sort();
  byId("search").focus();
});

summarize();
offerChoices();
offerOrders();
apply();
if (!hasSheets) byId("list").classList.add("plain");
byId("list").append(...rows.map((row) => row.article));
for (const row of rows) near.observe(row.article);

// Pictures go on arriving while the page loads.
const arriving = setInterval(() => rows.forEach((row) => row.showPicture?.()), 300);
document.addEventListener("DOMContentLoaded", () => {
  clearInterval(arriving);
  for (const row of rows) row.showPicture?.();
  offerChoices(); // which videos are gone is known now
});
