/* The page itself: theme, filter, sorting, a cell's records, and which chart is drawn. */
"use strict";

(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const one = (selector, within = document) => within.querySelector(selector);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  // -- theme: the system's until somebody chooses ------------------------------------------------------------
  const theme = one("#theme");
  const dark = () => {
    const chosen = document.documentElement.dataset.theme;
    return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  };
  const name = () => (theme.textContent = dark() ? "Light" : "Dark");
  theme.addEventListener("click", () => {
    document.documentElement.dataset.theme = dark() ? "light" : "dark";
    name();
  });
  theme.hidden = false;
  name();

  // -- filter ------------------------------------------------------------------------------------------------
  const filter = one("#filter");
  const choices = all("select[data-word]", filter);
  const kinds = { untrained: one("#untrained"), reference: one("#references"), published: one("#references") };
  const words = () => one("#words").value.toLowerCase().split(/[,;]/).map((word) => word.trim()).filter(Boolean);
  let wanted = [];
  const keep = (name) => !wanted.length || wanted.some((word) => name.toLowerCase().includes(word));
  const placed = (of) => choices.every((choice) => !choice.value || !of.length || of[choice.dataset.word] === choice.value);

  function apply() {
    wanted = words();
    let rows = 0, shown = 0;
    for (const section of all("section.rows")) {
      const here = placed(JSON.parse(section.dataset.of));
      let some = 0;
      for (const row of all("tbody tr", section)) {
        const kind = [...row.classList].find((name) => name in kinds);
        row.hidden = !(here && (!kind || kinds[kind].checked) && (kind in { reference: 1 } || keep(row.cells[0].textContent)));
        rows++;
        some += !row.hidden && kind !== "reference";
        shown += !row.hidden;
      }
      section.hidden = !some;
    }
    one("#count").textContent = shown === rows ? `${rows} rows` : `${shown} of ${rows} rows`;
    pictures();
    draw();
  }
  filter.addEventListener("input", apply);
  filter.addEventListener("submit", (event) => event.preventDefault());
  filter.hidden = false;

  // -- sorting: a method's untrained row stays below it, references stay last -----------------------------------
  const last = { reference: 1, published: 1 };
  function value(row, j) {
    const cell = row.cells[j];
    const text = cell.dataset.value ?? cell.textContent;
    const number = parseFloat(text.replace(/^</, ""));
    return /^(inf|∞)/.test(text) ? Infinity : number;
  }
  function sort(table, j, rising) {
    const groups = [];
    for (const row of table.tBodies[0].rows) {
      const below = row.classList.contains("untrained") && groups.length && groups.at(-1)[0].classList.contains("method");
      if (below) groups.at(-1).push(row);
      else groups.push([row]);
    }
    const rank = ([row]) => [...row.classList].some((name) => name in last);
    const text = ([row]) => row.cells[j].textContent;
    groups.sort((a, b) => {
      if (rank(a) !== rank(b)) return rank(a) - rank(b);
      const [x, y] = [value(a[0], j), value(b[0], j)];
      if (Number.isNaN(x) !== Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
      const order = Number.isNaN(x) ? text(a).localeCompare(text(b)) : x - y || 0;
      return rising ? order : -order;
    });
    table.tBodies[0].append(...groups.flat());
    all("thead th", table).forEach((head, i) => {
      if (i === j) head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    });
  }
  for (const table of all("section.rows table"))
    all("thead th", table).forEach((head, j) => {
      const title = one(".head", head);
      const button = html("button", { type: "button" }, ...title.childNodes);
      title.append(button);
      button.addEventListener("click", () => {
        const now = head.getAttribute("aria-sort");
        const first = button.textContent.includes("↑") ? "descending" : "ascending"; // the best first
        sort(table, j, (now === first ? (first === "ascending" ? "descending" : "ascending") : first) === "ascending");
      });
    });

  // -- what a cell was read from -----------------------------------------------------------------------------
  const dialog = one("#details");
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a.cell");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    const records = link.dataset.records.split(" ").map((i) => data.records[i]);
    one("#facts").replaceChildren(
      ...records.flatMap((record) => {
        const facts = record.facts.flatMap(([name, text]) => [html("dt", {}, name), html("dd", {}, text)]);
        const file = html("a", { href: record.href }, record.href);
        return [html("h3", {}, record.title), html("p", { class: "soft" }, "record ", file), html("dl", {}, ...facts)];
      })
    );
    const row = link.closest("tr").cells[0].firstChild.textContent; // without the letters of its notes
    one("#details-title").textContent = `${row.trim()}: ${records.length} record${records.length > 1 ? "s" : ""}`;
    dialog.showModal();
    dialog.scrollTop = 0;
  });
  one("#close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());

  // -- charts ------------------------------------------------------------------------------------------------
  function fill(select, options) {
    const before = select.value;
    const texts = [...new Set(options)];
    select.replaceChildren(...texts.map((text) => html("option", {}, text)));
    if (texts.includes(before)) select.value = before;
    select.parentElement.hidden = texts.length < 2;
    return select.value;
  }
  const place = (entry) => entry.heading || entry.of.join(" · ");
  const among = (entries, select, by) => {
    const chosen = fill(select, entries.map(by));
    return entries.filter((entry) => by(entry) === chosen);
  };

  const drawn = {
    trade(holder) {
      let found = among(data.trades.filter((entry) => placed(entry.of)), one("#trade-place"), place);
      found = among(found, one("#trade-x"), (entry) => entry.x);
      found = among(found, one("#trade-y"), (entry) => entry.y);
      if (found.length) drawTrade(holder, found[0], data.looks, keep);
      return found.length;
    },
    anytime(holder) {
      let found = among(data.panels.filter((entry) => placed(entry.of)), one("#anytime-place"), place);
      found = among(found, one("#anytime-number"), (entry) => entry.label);
      if (!found.length) return 0;
      const axes = found[0].axes;
      const names = { "gpu-h": "device time", flop: "FLOP", img: "images", share: "share of the budget" };
      const axis = fill(one("#anytime-axis"), ["gpu-h", "flop", "img", "share"].filter((a) => a in axes).map((a) => names[a]));
      drawAnytime(holder, found[0], Object.keys(names).find((a) => names[a] === axis), data.looks, keep);
      return 1;
    },
    ledger(holder) {
      const found = among(data.ledgers.filter((entry) => placed(entry.of)), one("#ledger-place"), place);
      if (found.length) drawLedger(holder, found[0], one("#ledger-charged").checked, keep);
      return found.length;
    },
  };
  function draw() {
    for (const section of all("section.chart")) {
      section.hidden = false;
      section.hidden = !drawn[section.id](one(".plot", section));
    }
  }
  for (const section of all("section.chart")) section.addEventListener("change", draw);

  // -- pictures ----------------------------------------------------------------------------------------------
  const album = one("#samples");
  function pictures() {
    if (!album) return;
    const found = all("figure", album);
    const kind = fill(one("#samples-kind"), found.map((figure) => figure.dataset.kind));
    for (const figure of found) {
      const mine = placed(JSON.parse(figure.dataset.of)) && JSON.parse(figure.dataset.who).some(keep);
      figure.hidden = !(mine && figure.dataset.kind === kind);
    }
  }
  if (album) {
    one(".choices", album).hidden = false;
    one("#samples-kind").addEventListener("change", pictures);
  }

  apply();
  let waiting = 0;
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(draw);
  });
})();
