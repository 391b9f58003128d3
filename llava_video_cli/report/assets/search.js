// Search and filters: rows that don't match are hidden, words that do are marked.

let terms = [], marking = 0;

function matches(row) {
  const folder = byId("folder").value, state = byId("state").value, notes = byId("notes").value;
  return (!folder || row.folder === folder || row.folder.startsWith(folder === "/" ? "/" : `${folder}/`))
    && (!state || stateOf(row) === state || (state === "gone" && isGone(row)))
    && (!notes || (notes === "with") === Boolean(row.notes))
    && terms.every((term) => row.haystack.includes(term));
}

const stateOf = (row) => (row.error ? "failed" : row.finish || "unknown");
const isGone = (row) => row.sheet !== undefined && "gone" in (byId(`sheet-${row.sheet}`)?.dataset ?? {});

function apply() {
  terms = folded(byId("search").value).split(/\s+/).filter(Boolean);
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
