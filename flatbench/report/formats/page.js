"use strict";
// A button in every column's head sorts its table: by data-value where cells have one, by their
// text otherwise; cells without either stay at the end whichever way it goes.
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const direction = head.ariaSort === "ascending" ? -1 : 1;
      const body = table.tBodies[0];
      const numeric = [...body.rows].some((row) => row.cells[column].dataset.value !== undefined);
      const key = (row) => {
        const cell = row.cells[column];
        if (numeric) return cell.dataset.value === undefined ? null : Number(cell.dataset.value);
        return cell.textContent.trim() === "—" ? null : cell.textContent.trim();
      };
      const compare = (a, b) =>
        numeric ? a - b : a.localeCompare(b, "en", { numeric: true });
      const rows = [...body.rows].map((row) => [key(row), row]);
      rows.sort(([a], [b]) =>
        a === null || b === null ? (a === null) - (b === null) : direction * compare(a, b));
      body.append(...rows.map(([, row]) => row));
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
      const said = document.getElementById("said");
      said.textContent = `Sorted by ${head.textContent.trim()}, ${head.getAttribute("aria-sort")}`;
    });
  });
}
// What is wider than the page says so, as long as it is.
const tell = () => {
  for (const region of document.querySelectorAll(".scroll")) {
    const hint = region.previousElementSibling;
    if (hint) hint.hidden = region.scrollWidth <= region.clientWidth;
  }
};
addEventListener("resize", tell);
addEventListener("load", tell);
document.addEventListener("toggle", tell, true);
// A link to what is folded away unfolds it.
const unfold = () => {
  const target = document.getElementById(location.hash.slice(1));
  if (target instanceof HTMLDetailsElement) target.open = true;
};
addEventListener("hashchange", unfold);
unfold();
