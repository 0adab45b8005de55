"use strict";
// The report's page: sorts the table of cases, filters it, and opens the viewer of a case.

(function () {
  const dialog = document.getElementById("viewer");
  const table = document.getElementById("cases");

  function openViewer(button) {
    const shell = JSON.parse(document.getElementById("shell").textContent);
    const content = document.getElementById(`view-${button.dataset.view}`).textContent;
    const frame = document.createElement("iframe");
    frame.title = `viewer of ${button.dataset.case}`;
    frame.setAttribute("sandbox", "allow-scripts");
    const name = document.createElement("span");
    name.textContent = button.dataset.case;
    frame.srcdoc = shell.page.replaceAll(shell.title, () => name.innerHTML).replace(shell.case, () => content);
    dialog.replaceChildren(dialog.querySelector("form"), frame);
    dialog.showModal();
  }

  function sortBy(column, header) {
    const ascending = header.getAttribute("aria-sort") !== "ascending";
    table.querySelectorAll("th").forEach((one) => one.removeAttribute("aria-sort"));
    header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const valueOf = (row) => {
      const text = row.children[column].dataset.value ?? row.children[column].textContent;
      const number = Number(text);
      return text === "" ? null : Number.isNaN(number) ? text : number;
    };
    const rows = [...table.tBodies[0].rows].sort((one, other) => {
      const [a, b] = [valueOf(one), valueOf(other)];
      if (a === null || b === null) return (a === null) - (b === null); // unknown values are last
      const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
      return ascending ? order : -order;
    });
    table.tBodies[0].append(...rows);
  }

  document.querySelectorAll("button.open").forEach((button) => button.addEventListener("click", () => openViewer(button)));
  dialog.addEventListener("close", () => dialog.querySelector("iframe")?.remove());
  // A page that shows the report of one case in a frame sets this, so that the viewer is open at once.
  if (document.documentElement.dataset.open === "viewer") document.querySelector("button.open")?.click();
  if (!table) return;
  [...table.tHead.rows[0].cells].forEach((header, column) => {
    if (!header.dataset.sortable) return;
    header.tabIndex = 0;
    header.addEventListener("click", () => sortBy(column, header));
    header.addEventListener("keydown", (event) => event.key === "Enter" && sortBy(column, header));
  });
  document.getElementById("filter").addEventListener("input", (event) => {
    const text = event.target.value.toLowerCase();
    for (const row of table.tBodies[0].rows) row.hidden = !row.textContent.toLowerCase().includes(text);
  });
  document.body.dataset.ready = "true";
})();
