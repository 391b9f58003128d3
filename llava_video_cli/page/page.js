// The page as a whole: its head, what the filters offer, keys, and the list itself.

function choices(id, all, options) {
  const select = byId(id);
  const chosen = select.value;
  select.replaceChildren(new Option(all, ""), ...options.map(([value, label, count]) => new Option(`${label} (${count.toLocaleString("en")})`, value)));
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
  choices("folder", "Folders", folders.sort().map(([folder, count]) => [folder, folder === "." ? "this folder" : folder, count]));
  const states = counted(rows.map(stateOf)), gone = rows.filter(isGone).length, labels = { ...ENDS, failed: "failed", unknown: "end not recorded" };
  choices("state", "Results", [...[...states].map(([state, count]) => [state, Object.hasOwn(labels, state) ? labels[state] : state, count]),
    ...(gone ? [["gone", "video can't be read any more", gone]] : [])]);
  const withNotes = rows.filter((row) => row.notes).length;
  choices("notes", "Notes", withNotes ? [["with", "with notes", withNotes], ["without", "without notes", rows.length - withNotes]] : []);
}

function summarize() {
  const failed = rows.filter((row) => row.error).length, videos = new Set(rows.filter((row) => !row.error).map((row) => row.name)).size;
  const results = rows.length - failed, seconds = [...new Map(rows.map((row) => [row.name, row.duration ?? 0])).values()].reduce((a, b) => a + b, 0);
  const models = [...new Set(rows.filter((row) => row.settings.model).map((row) => visible(String(row.settings.model))))];
  const asked = results === videos ? "" : `${plural(results, "result")} on `;
  document.title = `${visible(head.name)} · llvid`;
  byId("title").textContent = visible(head.name);
  byId("summary").textContent = [asked + plural(videos, "video"), seconds && `${clock(seconds)} of video`,
    failed && `${failed.toLocaleString("en")} failed`, models.length <= 3 ? models.join(", ") : plural(models.length, "model")].filter(Boolean).join(" · ");
  byId("remarks").append(...head.notes.map((line) => make("li", "", visible(line))));
  byId("made").textContent = `Made by llvid ${head.version}, ${head.made}`;
}

function step(by) {
  const shown = rows.filter((row) => !row.article.hidden);
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
byId("tools").addEventListener("change", apply);
byId("tools").addEventListener("submit", (event) => event.preventDefault());
byId("clear").addEventListener("click", () => {
  for (const field of byId("tools").elements) if ("value" in field && field.id) field.value = "";
  apply();
  byId("search").focus();
});

summarize();
offerChoices();
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
