"use strict";
// On the leaderboard a click on a column's head sorts its table: by the numbers in its cells, the
// first column by its text. What has no number stays at the end whichever way it goes.
const numbers = (cell) => cell.textContent.replaceAll(",", "").match(/\d+(\.\d+)?/g)?.map(Number);
const compare = (a, b) => {
  const place = a.findIndex((value, i) => value !== b[i]);
  return place < 0 ? 0 : a[place] - b[place];
};
const sort = (table, column) => {
  const heads = [...table.tHead.rows[0].cells];
  const direction = heads[column].ariaSort === "ascending" ? -1 : 1;
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => {
    const cell = row.cells[column];
    return [column === 0 ? cell.textContent.trim() : numbers(cell), row];
  });
  rows.sort(([a], [b]) => {
    if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
    return direction * (column === 0 ? a.localeCompare(b, "en") : compare(a, b));
  });
  body.append(...rows.map(([, row]) => row));
  for (const head of heads) head.removeAttribute("aria-sort");
  heads[column].setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
};
addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll("section#leaderboard table")) {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.append(...head.childNodes);
      button.addEventListener("click", () => sort(table, column));
      head.append(button);
    });
  }
});
