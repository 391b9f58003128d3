// Search and filters: rows that don't match are hidden, words that do are marked.

let terms = [], marking = 0, meets = () => true, order = rows;

/** The condition that was typed, such as yes>0.8, as a function of a row; null if it is none. */
function condition(text) {
  if (!text.trim()) return () => true;
  const [, choice, sign, digits] = /^\s*(.+?)\s*(>=|<=|>|<)\s*([0-9.]+)\s*$/.exec(text) ?? [];
  if (!rows.some((row) => row.scores.has(choice)) || Number.isNaN(Number(digits))) return null;
  return (row) => {
    const score = row.scores.get(choice) ?? NaN, above = score - Number(digits);
    return above === 0 ? sign.includes("=") : sign.includes(">") ? above > 0 : above < 0;
  };
}

const { compare } = new Intl.Collator("en", { numeric: true });

/** Put the rows into the order that was chosen: of names, of a choice and a direction, or as they came. */
function sort() {
  const chosen = byId("sort").value, sign = chosen[0], choice = chosen.slice(1);
  const score = (row) => row.scores.get(choice) ?? -1; // those without one come last, whatever the direction
  const scores = (a, b) => (sign === "-" || score(a) < 0 || score(b) < 0 ? score(b) - score(a) : score(a) - score(b));
  const names = { az: (a, b) => compare(a.name, b.name), za: (a, b) => compare(b.name, a.name) };
  order = chosen ? [...rows].sort(names[chosen] ?? scores) : rows;
  byId("list").append(...order.map((row) => row.article));
}

function matches(row) {
  const folder = byId("folder").value, state = byId("state").value, notes = byId("notes").value;
  return (!folder || row.folder === folder || row.folder.startsWith(folder === "/" ? "/" : `${folder}/`))
    && (!state || stateOf(row) === state || (state === "gone" && isGone(row)))
    && (!notes || (notes === "with") === Boolean(row.notes))
    && meets(row)
    && terms.every((term) => row.haystack.includes(term));
}

const stateOf = (row) => (row.error ? "failed" : row.finish || "unknown");
const isGone = (row) => row.sheet !== undefined && "gone" in (byId(`sheet-${row.sheet}`)?.dataset ?? {});

function apply() {
  terms = folded(byId("search").value).split(/\s+/).filter(Boolean);
  const wanted = condition(byId("where").value);
  byId("where").setAttribute("aria-invalid", !wanted);
  meets = wanted ?? (() => true);
  let shown = 0;
  for (const row of rows) {
    const hidden = !matches(row);
    shown += !hidden;
    if (row.article.hidden !== hidden) row.article.hidden = hidden;
    if (!hidden) row.showFound?.(terms);
  }
  const [some, all] = [shown, rows.length].map((count) => count.toLocaleString("en"));
  byId("count").textContent = shown === rows.length ? plural(shown, "row") : `${some} of ${all}`;
  byId("nothing").hidden = shown > 0;
  highlight();
}

/** Mark the words searched for, without touching the page's elements (CSS Custom Highlight API). */
function highlight() {
  if (!globalThis.Highlight || marking) return;
  marking = requestAnimationFrame(() => {
    marking = 0;
    CSS.highlights.delete("found");
    if (!terms.length) return;
    const literal = (term) => term.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&");
    const wanted = new RegExp(terms.map(literal).join("|"), "giu"), ranges = [];
    for (const article of document.querySelectorAll("article:not(:empty):not([hidden])")) {
      const texts = document.createTreeWalker(article.querySelector(".words"), NodeFilter.SHOW_TEXT);
      while (texts.nextNode() && ranges.length < 5000) {
        for (const { index, 0: word } of texts.currentNode.data.matchAll(wanted)) {
          const node = texts.currentNode, startOffset = index, endOffset = index + word.length;
          ranges.push(new StaticRange({ startContainer: node, startOffset, endContainer: node, endOffset }));
        }
      }
    }
    CSS.highlights.set("found", new Highlight(...ranges));
  });
}
