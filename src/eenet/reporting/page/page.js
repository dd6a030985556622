"use strict";
// Draws the report from the data inside the page. Everything that comes from data is set as text, never as HTML, and no
// exit is decided here: the budgets of the slider are those that Python has replayed.
(async () => {
  const $ = id => document.getElementById(id);

  async function unpack(id) {
    const packed = atob($(id).textContent.trim());
    const bytes = new Uint8Array(packed.length);
    for (let n = 0; n < packed.length; n++) bytes[n] = packed.charCodeAt(n);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Response(stream).text();
  }

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "class") made.className = value;
      else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
    }
    made.append(...children.filter(child => child !== null && child !== undefined));
    return made;
  }

  // Numbers as text

  const number = value => value === null || value === undefined ? "–" : String(Number(Number(value).toPrecision(4)));
  const percent = (value, digits = 1) => value === null || value === undefined ? "–" : `${(100 * value).toFixed(digits)}\u00a0%`;  // the space does not break
  const show = value => typeof value === "number" ? number(value) : String(value ?? "–");

  // Plotly reads a little HTML in text, so what comes from data is escaped for it.
  const plain = text => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const shorten = (text, most) => text.length > most ? `${text.slice(0, most - 1)}…` : text;
  function wrapped(text, most) {
    const lines = [""];
    for (const word of String(text).split(" ")) {
      const last = lines[lines.length - 1];
      if (last && last.length + word.length >= most) lines.push(word);
      else lines[lines.length - 1] = last ? `${last} ${word}` : word;
    }
    return lines.map(line => plain(shorten(line, 2 * most))).join("<br>");
  }

  const data = JSON.parse(await unpack("data"));
  const state = { run: 0, scheduler: "", at: 0 };
  const run = () => data.runs[state.run];
  const standing = () => run()?.standing[state.scheduler]?.[state.at] ?? null;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const color = name => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const inPrint = matchMedia("print");
  const ink = style => dark.matches && !inPrint.matches ? style.dark : style.color;

  // Figures: each has its entry of the data, and is drawn when it comes into view.

  const figures = [];

  function chartNow(entry) {
    if (!entry.frames) return entry;
    const frames = entry.frames[state.scheduler];
    if (!frames) return null;
    const patch = frames[frames.length === 1 ? 0 : state.at];
    return patch ? { ...entry, ...patch } : null;
  }

  function dashed(style) {
    return style.dashes.length ? style.dashes.map(length => `${length}px`).join(",") : "solid";
  }

  const middle = (values, log) => log ? Math.sqrt(Math.min(...values) * Math.max(...values)) : (Math.min(...values) + Math.max(...values)) / 2;

  function lineTraces(chart) {
    const traces = [];
    const many = chart.series.filter(one => one.low).length > 3; // then only the chosen one has its band
    const values = which => chart.series.flatMap(one => one[which]).filter(value => value !== null);
    const [across, up] = [middle(values("x"), chart.x.log), middle(values("y"), chart.y.log)]; // labels point to the middle, so that none is cut off
    const sparse = chart.series.length > 5; // then a few markers on each line tell the lines apart
    for (const one of chart.series) {
      const look = ink(one.style), chosen = one.name === state.scheduler;
      if (one.low && (!many || chosen)) {
        const known = one.x.map((x, n) => x !== null && one.low[n] !== null && one.high[n] !== null ? n : -1).filter(n => n >= 0).sort((a, b) => one.x[a] - one.x[b]);
        const x = known.map(n => one.x[n]);
        const edge = { x, mode: "lines", line: { width: 0 }, hoverinfo: "skip", showlegend: false, type: "scatter" };
        traces.push({ ...edge, y: known.map(n => one.low[n]) });
        traces.push({ ...edge, y: known.map(n => one.high[n]), fill: "tonexty", fillcolor: `${look}33` });
      }
      const parts = [one.line ? "lines" : "", one.points || (sparse && one.line && one.style.marker) ? "markers" : "", one.text ? "text" : ""].filter(Boolean);
      const bar = (error, of) => error ? { type: "data", array: error.map(value => value ?? 0), color: look, thickness: 1, ...of } : undefined;
      traces.push({
        type: "scatter", x: one.x, y: one.y, name: plain(one.name), mode: parts.join("+") || "markers",
        line: { color: look, dash: dashed(one.style), width: chosen ? 3 : 1.5 },
        marker: { color: look, symbol: one.style.symbol, size: one.style.symbol === "star" ? 12 : 8, maxdisplayed: one.points ? 0 : 7 },
        error_x: bar(one.x_error), error_y: bar(one.y_error),
        text: one.text ? one.text.map(plain) : undefined, textposition: one.text ? one.x.map((x, n) => `${one.y[n] < up ? "top" : "bottom"} ${x > across ? "left" : "right"}`) : undefined, cliponaxis: !one.text, textfont: { color: look, size: 11 },
        hovertemplate: `${one.text ? "%{text}: " : ""}%{x:.4~g}, %{y${chart.y.percent ? ":.2%" : ":.4~g"}}<extra>${plain(one.name)}</extra>`,
      });
    }
    return traces;
  }

  function stepTraces(chart) {
    return chart.series.map((one, number) => ({
      type: "bar", name: plain(one.name),
      x: one.values.map((_, n) => (one.edges[n] + one.edges[n + 1]) / 2),
      width: one.values.map((_, n) => one.edges[n + 1] - one.edges[n]),
      y: one.values,
      marker: { color: ink(one.style), opacity: .65, line: { width: 0 }, pattern: number ? { shape: "/", size: 5, fillmode: "overlay" } : {} },
      hovertemplate: `%{x:.4~g}: %{y}<extra>${plain(one.name)}</extra>`,
    }));
  }

  function barTraces(chart) {
    return chart.series.map(one => ({
      type: "bar", orientation: "h", name: plain(one.name),
      y: chart.categories.map((_, n) => n), x: one.values,
      error_x: one.errors ? { type: "data", array: one.errors.map(value => value ?? 0), thickness: 1 } : undefined,
      marker: { color: ink(one.style), line: { color: color("ground"), width: 1.5 } },
      customdata: chart.categories.map(plain),
      hovertemplate: `%{customdata}: %{x${chart.y.percent ? ":.1%" : ":.4~g"}}<extra>${plain(one.name)}</extra>`,
    }));
  }

  function heatTrace(chart) {
    const few = chart.columns.length <= 12 && chart.rows.length <= 40;
    const shown = value => value === null ? "" : chart.percent ? (100 * value).toFixed(0) : number(value);
    return [{
      type: "heatmap", z: chart.values, x: chart.columns.map((_, n) => n), y: chart.rows.map((_, n) => n),
      zmin: chart.limits ? chart.limits[0] : undefined, zmax: chart.limits ? chart.limits[1] : undefined,
      colorscale: "Cividis", showscale: !few, xgap: 1, ygap: 1, hoverongaps: false,
      text: chart.values.map(row => row.map(shown)), texttemplate: few ? "%{text}" : undefined, textfont: { size: 11 },
      customdata: chart.rows.map(row => chart.columns.map(column => `${plain(row)}, ${plain(column)}`)),
      hovertemplate: `%{customdata}: %{z${chart.percent ? ":.1%" : ":.4~g"}}<extra></extra>`,
    }];
  }

  function markers(chart, traces) {
    const shapes = [], annotations = [];
    const across = (at, line) => shapes.push({ type: "line", y0: at, y1: at, xref: "paper", x0: 0, x1: 1, line });
    const upright = (at, line) => shapes.push({ type: "line", x0: at, x1: at, yref: "paper", y0: 0, y1: 1, line });
    for (const rule of chart.rules ?? []) {
      const line = { color: color("soft"), width: 1.5, dash: "dash" }, text = plain(rule.name);
      if (rule.axis === "diagonal") shapes.push({ type: "line", x0: 0, y0: 0, x1: 1, y1: 1, line });
      else if ((rule.axis === "x") !== (chart.kind === "bars")) { // bars lie on their side
        upright(rule.at, { ...line, color: color("ink"), width: 2 });
        annotations.push({ x: chart.x.log ? Math.log10(rule.at) : rule.at, y: 1, yref: "paper", yanchor: "bottom", showarrow: false, text, font: { size: 11 } });
      } else {
        across(rule.at, line);
        annotations.push({ y: rule.at, x: 1, xref: "paper", xanchor: "right", yanchor: "bottom", showarrow: false, text, font: { size: 11 } });
      }
    }
    const now = standing();
    if (chart.marker && now) {
      const mark = { color: color("mark"), width: 1.5, dash: "dot" };
      if (chart.marker === "cost-y") across(now.cost, mark);
      else if (chart.marker === "share-y") across(now.cost / run().reference, mark);
      else if (chart.marker === "going-on") now.shares.slice(0, -1).forEach((_, k) => upright(1 - now.shares.slice(0, k + 1).reduce((sum, share) => sum + share, 0), mark));
      else upright(chart.marker === "cost" ? now.cost : now.budget, mark);
      const own = (chart.series ?? []).find(one => one.name === state.scheduler && one.x.length === run().budgets.length);
      if (own && own.y[state.at] !== null) {
        traces.push({
          type: "scatter", mode: "markers", x: [own.x[state.at]], y: [own.y[state.at]], name: "the chosen budget",
          marker: { color: color("mark"), size: 14, symbol: "circle-open", line: { width: 3 } }, hoverinfo: "skip",
        });
      }
    }
    return { shapes, annotations };
  }

  function layoutOf(chart, width, traces) {
    const { shapes, annotations } = markers(chart, traces);
    const names = traces.filter(trace => trace.showlegend !== false && trace.type !== "heatmap").map(trace => trace.name ?? "");
    const columns = Math.max(1, Math.floor((width - 40) / (50 + 7 * Math.max(8, ...names.map(name => name.length)))));
    const legendRows = names.length > 1 || chart.kind === "steps" ? Math.ceil(names.length / columns) : 0;
    const axis = (said, more) => ({
      title: { text: wrapped(said.label, Math.max(20, Math.floor(width / 8))), font: { size: 12 }, standoff: 8 }, tickformat: said.percent ? ",.2~%" : undefined,
      range: said.range ? (said.log ? said.range.map(Math.log10) : said.range) : undefined, type: said.log ? "log" : undefined,
      tickvals: said.ticks ?? undefined, gridcolor: color("grid"), zeroline: false, automargin: true, linecolor: color("line"), ...more,
    });
    let height = 300 + 20 * legendRows, x = axis(chart.x), y = axis(chart.y), turned = false;
    if (chart.kind === "bars") {
      const room = width < 520 ? 18 : 30;
      x = axis(chart.y, {});
      y = axis(chart.x, { tickvals: chart.categories.map((_, n) => n), ticktext: chart.categories.map(name => wrapped(name, room)), autorange: "reversed", range: undefined });
      height = 110 + 20 * legendRows + chart.categories.length * (chart.stacked ? 54 : Math.max(54, 16 * chart.series.length));
    }
    if (chart.kind === "heat") {
      const room = Math.max(6, Math.floor((width - 110) / chart.columns.length / 7.5)), most = width < 520 ? 14 : 24;
      turned = Math.max(...chart.columns.flatMap(name => name.split(" ").map(word => word.length))) > room;
      const columns = chart.columns.map(name => turned ? plain(shorten(name, 22)) : wrapped(shorten(name, 3 * room), room));
      const rows = chart.rows.map(name => wrapped(shorten(name, 2 * most), most));
      const lines = Math.max(...rows.map(text => text.split("<br>").length));
      x = axis(chart.x, { tickvals: chart.columns.map((_, n) => n), ticktext: columns, tickangle: turned ? ((width - 110) / chart.columns.length < 26 ? -90 : -45) : 0, showgrid: false, side: "top" });
      y = axis(chart.y, { tickvals: chart.rows.map((_, n) => n), ticktext: rows, autorange: "reversed", range: undefined, showgrid: false });
      height = 130 + Math.max(120, (8 + 15 * lines) * chart.rows.length);
    }
    return {
      height, autosize: true, margin: { l: 20, r: turned ? 70 : 26, t: chart.kind === "heat" ? 30 : 22, b: 20 }, barmode: chart.kind === "bars" && !chart.stacked ? "group" : chart.kind === "steps" ? "overlay" : "stack",
      bargap: chart.kind === "steps" ? 0 : .25, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: color("ink"), size: 12, family: "system-ui, sans-serif" },
      xaxis: x, yaxis: y, shapes, annotations, showlegend: legendRows > 0, hovermode: "closest", hoverlabel: { namelength: -1 },
      legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom", x: 0, traceorder: "normal", font: { size: 11 } }, dragmode: false,
    };
  }

  const PAPER = 620;  // pixels across a page of paper, less the margins
  const CONFIG = { displaylogo: false, responsive: true, displayModeBar: false, scrollZoom: false, doubleClick: false, showTips: false };

  function draw(figure, paper = 0) {  // on paper in this width; by default in the width that there is
    const { entry, plot } = figure;
    const chart = chartNow(entry);
    figure.stale = false;
    figure.root.dataset.at = state.at;
    figure.root.dataset.scheduler = state.scheduler;
    if (chart === null) {
      if (figure.drawn) Plotly.purge(plot);
      figure.drawn = false;
      plot.textContent = "This budget is too small for the scheduler.";
      plot.className = "plot empty";
      figure.said.textContent = "";
      return;
    }
    if (!figure.drawn) { plot.textContent = ""; plot.className = "plot"; }
    const width = paper || plot.clientWidth || 600;
    const traces = { lines: lineTraces, steps: stepTraces, bars: barTraces, heat: heatTrace }[chart.kind](chart);
    const layout = layoutOf(chart, width, traces);
    if (paper) Object.assign(layout, { width: paper, autosize: false });
    plot.style.minHeight = `${layout.height}px`;
    Plotly.react(plot, traces, layout, CONFIG);
    figure.drawn = true;
    figure.said.textContent = Object.entries(chart.numbers ?? {}).map(([name, value]) => `${name}: ${show(value)}`).join(" · ");
    if (figure.details.open) fillTable(figure, chart);
  }

  function rowsOf(chart) {
    const axis = chart.x.label || "x";
    if (chart.kind === "heat") return [[chart.y.label || "", ...chart.columns], ...chart.rows.map((row, n) => [row, ...chart.values[n].map(value => chart.percent ? percent(value) : number(value))])];
    if (chart.kind === "bars") return [["", ...chart.series.map(one => one.name)], ...chart.categories.map((name, n) => [name, ...chart.series.map(one => chart.y.percent ? percent(one.values[n]) : number(one.values[n]))])];
    if (chart.kind === "steps") return [["from", "to", ...chart.series.map(one => one.name)], ...chart.series[0].values.map((_, n) => [number(chart.series[0].edges[n]), number(chart.series[0].edges[n + 1]), ...chart.series.map(one => number(one.values[n]))])];
    const cell = value => chart.y.percent ? percent(value, 2) : number(value);
    return [["curve", axis, chart.y.label || "y"], ...chart.series.flatMap(one => one.x.map((x, n) => [one.text?.[n] ? `${one.name}: ${one.text[n]}` : one.name, chart.x.percent ? percent(x, 2) : number(x), cell(one.y[n])]))];
  }

  function tableFrom([head, ...rows]) {
    const table = element("table", {}, element("thead", {}, element("tr", {}, ...head.map(text => element("th", { scope: "col" }, String(text))))));
    table.append(element("tbody", {}, ...rows.map(row => element("tr", {}, ...row.map(text => element("td", {}, String(text)))))));
    return table;
  }

  const fillTable = (figure, chart) => figure.table.replaceChildren(tableFrom(rowsOf(chart)));

  const tableOf = one => element("details", { class: "table", open: one.open ?? false }, element("summary", {}, one.title),
    element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": one.title }, tableFrom([one.columns, ...one.rows])));

  const observer = new IntersectionObserver(seen => {
    for (const { target, isIntersecting } of seen) {
      const figure = figures.find(one => one.root === target);
      if (!figure) continue;
      figure.near = isIntersecting;
      if (isIntersecting && figure.stale && window.Plotly) draw(figure);
    }
  }, { rootMargin: "300px" });

  let waiting = false;
  function redraw() {
    for (const figure of figures) figure.stale = true;
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      if (window.Plotly) for (const figure of figures) if (figure.near && figure.stale) draw(figure);
    });
  }

  const WIDE = new Set(["frontier"]);

  function figureOf(entry) {
    const plot = element("div", { class: "plot" });
    const said = element("p", { class: "numbers" });
    const table = element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Numbers of ${entry.title}` });
    const details = element("details", {}, element("summary", {}, "The numbers"), table);
    const root = element("figure", { id: `figure-${entry.name}`, class: entry.wide || WIDE.has(entry.name) ? "wide" : "" },
      element("figcaption", {}, element("h3", {}, entry.title), element("p", {}, entry.about)), plot, said, details);
    const figure = { entry, root, plot, said, details, table, stale: true, near: false, drawn: false };
    plot.setAttribute("role", "img");
    plot.setAttribute("aria-label", `${entry.title}. The numbers are in the table below.`);
    details.addEventListener("toggle", () => {
      const chart = chartNow(entry);
      if (details.open && chart) fillTable(figure, chart);
    });
    figures.push(figure);
    return root;
  }

  // Sections

  function build() {
    for (const figure of figures) { observer.unobserve(figure.root); if (figure.drawn) Plotly.purge(figure.plot); }
    figures.length = 0;
    galleries.length = 0;
    const sections = [...(run()?.sections ?? []), ...data.sections];
    $("contents").replaceChildren(...sections.map(one => element("li", {}, element("a", { href: `#${one.id}` }, one.title),
      ...(one.gallery ? [", ", element("a", { href: "#samples" }, "samples")] : []))));
    $("main").replaceChildren(...sections.map((one, number) => element("section", { id: one.id, "aria-labelledby": `${one.id}-title` },
      element("h2", { id: `${one.id}-title` }, `${number + 1}. ${one.title}`),
      element("p", {}, one.about),
      one.notes.length ? element("ul", { class: "note" }, ...one.notes.map(note => element("li", {}, note))) : null,
      element("div", { class: "charts" }, ...one.charts.map(figureOf)),
      ...(one.tables ?? []).map(tableOf),
      one.gallery ? galleryOf(one.gallery) : null)));
    for (const figure of figures) observer.observe(figure.root);
  }

  // The gallery: cards of samples, and the whole way of one.

  const galleries = [];
  const STEP = innerWidth < 520 ? 8 : 24;

  function rightness(gallery, sample, m, k, answer) {
    if (sample.utility === undefined) return null;
    if (gallery.pooled) return sample.utility[k];
    return answer === sample.label ? 1 : 0;
  }

  function wayOf(gallery, m) {
    // What every exit says of a sample, and where the chosen scheduler lets it leave; null where it cannot.
    const sample = gallery.samples[m], decided = gallery.schedulers[state.scheduler], now = standing();
    const letter = decided.exits[m][state.at];
    if (!now || letter === "-") return null;
    const left = parseInt(letter, 36), scores = decided.scores[decided.score_of[state.at]];
    const back = decided.handed_back ? decided.handed_back[m][state.at] === "1" : false;
    const exits = sample.predictions.map((predicted, k) => {
      const answer = scores.answers ? scores.answers[k][m] : predicted;
      return { k, answer, own: predicted, top: sample.tops[k], finite: sample.finite[k], right: rightness(gallery, sample, m, k, answer), score: scores.values[k]?.[m] ?? null, limit: now.limits[k] ?? null };
    });
    return { sample, left, back, exits, combined: Boolean(scores.answers), last: exits.length - 1 };
  }

  const className = c => run().classes[c] ?? `class ${c}`;
  const saidOf = (gallery, exit) => gallery.pooled ? (exit.right === null ? "an answer" : `${percent(exit.right)} right`) : className(exit.answer);
  const judged = (gallery, exit) => exit.right === null || gallery.pooled ? "" : exit.right ? "✓" : "✗";

  function picture(sample, k, alt = "") {
    const image = element("img", { src: sample.image, alt });
    return sample.masks ? element("span", { class: "picture" }, image, element("img", { class: "mask", src: sample.masks[k], alt: "" })) : image;
  }

  function card(gallery, m) {
    const way = wayOf(gallery, m), sample = gallery.samples[m];
    const lines = way.exits.map(exit => element("li", { class: exit.k === way.left ? "here" : "soft" },
      `${exit.k === way.left ? "▸ " : ""}exit ${exit.k}: ${shorten(saidOf(gallery, exit), 40)} `,
      element("span", { class: exit.right ? "right" : "wrong" }, judged(gallery, exit)), gallery.pooled ? "" : ` ${exit.top.toFixed(2)}`));
    const title = sample.label === undefined || gallery.pooled ? `sample ${sample.n}` : `sample ${sample.n}: ${shorten(className(sample.label), 40)}`;
    return element("button", { class: "card", type: "button", "data-sample": sample.n, onclick: () => open(gallery, m) },
      sample.image ? picture(sample, way.left) : null,
      element("strong", {}, title), sample.text === undefined ? null : element("span", {}, shorten(sample.text, 160)),
      element("ol", {}, ...lines), way.back ? element("span", { class: "wrong" }, "handed back") : null);
  }

  function galleryOf(gallery) {
    const fate = element("select", {}, element("option", { value: "" }, `all (${gallery.count})`), ...gallery.fates.map(one => element("option", { value: one.key }, `${one.text} (${one.count})`)));
    const where = element("select", {}, element("option", { value: "" }, "any exit"), ...run().exits.map((name, k) => element("option", { value: k }, name)));
    const result = element("select", {}, element("option", { value: "" }, "right or wrong"), element("option", { value: "1" }, "right where it leaves"), element("option", { value: "0" }, "wrong where it leaves"));
    const cards = element("div", { class: `cards${gallery.samples.some(one => one.text !== undefined) ? " texts" : ""}` });
    const said = element("p", { "aria-live": "polite" });
    const more = element("button", { type: "button" }, "Show more");
    let most = STEP;
    function fill() {
      const found = gallery.samples.map((_, m) => m).filter(m => {
        const way = wayOf(gallery, m);
        if (!way || (fate.value && way.sample.fate !== fate.value) || (where.value && way.left !== Number(where.value))) return false;
        return !result.value || (way.exits[way.left].right !== null && (way.exits[way.left].right >= .5) === (result.value === "1"));
      });
      said.textContent = standing() ? `${Math.min(most, found.length)} of ${found.length} samples of this kind; ${gallery.samples.length} of ${gallery.count} are in this page.` : "This budget is too small for the scheduler.";
      cards.replaceChildren(...found.slice(0, most).map(m => card(gallery, m)));
      more.hidden = found.length <= most;
    }
    const again = () => { most = STEP; fill(); };
    for (const select of [fate, where, result]) select.addEventListener("change", again);
    more.addEventListener("click", () => { most += STEP; fill(); });
    galleries.push(fill);
    const labeled = gallery.samples.some(one => one.utility !== undefined);
    return element("section", { class: "gallery", id: "samples", "aria-labelledby": "samples-title" },
      element("h3", { id: "samples-title" }, "Samples"),
      element("p", { class: "about" }, "Each card says what every exit predicts, with its largest probability; ▸ marks where the sample leaves. Open a card to see its whole way, and why it left there."),
      element("div", { class: "filters" }, gallery.fates.length ? element("label", {}, "Group", fate) : null, element("label", {}, "Leaves at", where), labeled && !gallery.pooled ? element("label", {}, "Answer", result) : null),
      said, cards, more);
  }

  function why(way, exit) {
    const score = `score ${number7(exit.score)}`, limit = `threshold ${number7(exit.limit)}`;
    if (exit.k > way.left) return "not reached";
    if (exit.k === way.last) return way.back ? "the last exit: not sure enough, so the sample is handed back" : "the last exit takes every sample that comes to it";
    if (exit.k === way.left) return `leaves: ${score} is at or above the ${limit}`;
    if (exit.limit === null) return "goes on: no sample leaves here at this budget";
    if (exit.score === null) return "goes on: the output is not finite";
    return `goes on: ${score} is below the ${limit}`;
  }
  const number7 = value => value === null ? "–" : String(value);

  function open(gallery, m) {
    const way = wayOf(gallery, m), { sample } = way, pooled = gallery.pooled;
    const left = way.exits[way.left];
    $("sample-title").textContent = `Sample ${sample.n}`;
    const lead = way.back ? "It is handed back: no exit is sure of it." : `It leaves at ${run().exits[way.left]}${left.right === null || pooled ? "" : left.right ? ", and the answer is right" : ", and the answer is wrong"}.`;
    const head = ["exit", pooled ? "right" : way.combined ? "answer (exits so far combined)" : "prediction", "probability", "score", "threshold", "what happens"];
    const rows = way.exits.map(exit => element("tr", { class: exit.k === way.left ? "here" : exit.k > way.left ? "after" : "" },
      element("td", {}, run().exits[exit.k]),
      element("td", {}, saidOf(gallery, exit), " ", element("span", { class: exit.right ? "right" : "wrong" }, judged(gallery, exit)), way.combined && exit.own !== exit.answer ? element("small", {}, ` (the exit alone: ${className(exit.own)})`) : null),
      element("td", { class: "roomy" }, exit.finite ? exit.top.toFixed(4) : "not finite"),
      element("td", { class: "roomy" }, exit.k === way.last ? "" : number(exit.score)),
      element("td", { class: "roomy" }, exit.k === way.last ? "" : exit.limit === null ? "off" : number(exit.limit)),
      element("td", {}, why(way, exit))));
    const group = gallery.fates.find(one => one.key === sample.fate);
    $("sample-body").replaceChildren(...[
      !sample.image ? null : !sample.masks ? picture(sample, 0, `sample ${sample.n}`) : element("div", { class: "masks" },
        element("figure", {}, element("img", { src: sample.image, alt: `sample ${sample.n}` }), element("figcaption", {}, "the image")),
        ...way.exits.map(exit => element("figure", {}, picture(sample, exit.k, `what exit ${exit.k} predicts`), element("figcaption", {}, `exit ${exit.k}${exit.k === way.left ? ", leaves" : ""}`)))),
      sample.text !== undefined ? element("p", {}, sample.text) : null,
      element("p", {}, `${sample.label === undefined || pooled ? "" : `Its class is ${className(sample.label)}. `}${lead}${group ? ` Group: ${group.text}.` : ""}`),
      element("div", { class: "scroll" }, element("table", {}, element("thead", {}, element("tr", {}, ...head.map((text, n) => element("th", { scope: "col", class: n > 1 && n < 5 ? "roomy" : "" }, text)))), element("tbody", {}, ...rows))),
      element("p", { class: "soft" }, `${state.scheduler} at a budget of ${budgetText(state.at)}. The score is the ${run().score_labels[standing().score]}.`),
    ].filter(Boolean));
    $("sample").showModal();
  }

  // The budget

  const budgetText = at => `${number(run().budgets[at])} ${run().costs.unit} (${percent(run().budgets[at] / run().reference, 0)} of ${run().reference_name})`;

  // Fewer milliseconds are faster; fewer FLOPs, bytes or cents are cheaper.
  const gain = (now, as = "") => `${now.speed_up.toFixed(2)} times as ${run().timed ? "fast" : "cheap"}${as && ` as ${as}`}`;

  // What it costs in accuracy, in points, on the same samples.
  const against = now => now.difference === null ? "" : `${now.difference < 0 ? "" : "+"}${(100 * now.difference).toFixed(2)} ± ${(100 * now.difference_error).toFixed(2)} points of accuracy against the last exit`;

  function fact(id, name, value, small) {
    return element("div", {}, element("dt", {}, name), element("dd", { id }, value, small ? element("small", {}, small) : null));
  }

  function describe() {
    const now = standing(), { costs, exits } = run(), unit = costs.unit;
    const slider = $("budget");
    slider.value = state.at;
    slider.setAttribute("aria-valuetext", budgetText(state.at));
    $("typed").value = `${number(run().budgets[state.at])} ${unit}`;
    $("said").textContent = `${state.scheduler}, budget ${budgetText(state.at)}${now ? `: ${now.accuracy === null ? "" : `${percent(now.accuracy)} right, `}${gain(now)}${now.difference === null ? "" : `, ${against(now)}`}` : ""}`;
    $("instead").hidden = !now?.instead;
    if (!now) {
      $("sentence").textContent = `${state.scheduler} cannot keep a budget of ${budgetText(state.at)}. Choose a larger one.`;
      $("figures").replaceChildren();
      return;
    }
    const as = costs.plain === null ? "one pass to the last exit" : "the plain network";
    const error = now.accuracy_error === null ? "" : ` ± ${percent(now.accuracy_error)}`;
    const right = now.accuracy === null ? "The records have no labels, so how many are right is not known." : run().pooled ? `on average ${percent(now.accuracy)}${error} of a sample is right.` : `${percent(now.accuracy)}${error} of the ${now.handed_back ? "answered " : ""}samples are right.`;
    $("sentence").textContent = `With ${state.scheduler} and a budget of ${budgetText(state.at)}: ${right} A sample costs ${number(now.cost)} ${unit} on average, ${gain(now, as)}${now.difference === null ? "" : `, at ${against(now)}`}.${now.speed_up < 1 ? ` That is ${run().timed ? "slower" : "more expensive"}: at this budget early exit does not pay.` : ""}`;
    const same = now.thresholds.every((value, k) => number(value) === number(now.limits[k]));
    const where = run().fresh ? "samples that nothing was fitted on" : "the samples that it was fitted on";
    $("figures").replaceChildren(
      fact("accuracy", "Accuracy", now.accuracy === null ? "not known" : `${percent(now.accuracy, 2)}${now.accuracy_error === null ? "" : ` ± ${percent(now.accuracy_error, 2)}`}`, "one standard error"),
      fact("realized", `Mean cost on ${where}`, `${number(now.cost)} ± ${Number(now.cost_error.toPrecision(2))} ${unit}`, `${percent(Math.abs(now.cost / now.budget - 1))} ${now.cost > now.budget ? "over" : "under"} the budget`),
      fact("planned", "Planned cost", `${number(now.planned_cost)} ${unit}`, `${number(now.calibration_cost)} ${unit} on the calibration samples`),
      fact("speed-up", run().timed ? `Times as fast as ${as}` : `Times as cheap as ${as}`, now.speed_up.toFixed(2), [against(now), run().timed ? "expected from the costs, not timed" : ""].filter(Boolean).join("; ")),
      fact("shares", "Leave at", exits.map((name, k) => `${name}: ${percent(now.shares[k])}`).join(", ")),
      fact("thresholds", "Thresholds", now.thresholds.map((value, k) => `${exits[k]}: ${value === null ? "off" : number(value)}`).join(", "), `${same ? "" : `on the scale of the score: ${now.limits.map(value => value === null ? "off" : number(value)).join(", ")}; `}the score is the ${run().score_labels[now.score]}`),
      ...(now.handed_back ? [fact("handed-back", "Handed back, with no answer", percent(now.handed_back, 2), "accuracy is of the others")] : []));
    if (now.instead) $("instead").textContent = `A simple rule stands in for this scheduler at this budget. ${now.instead}`;
  }

  function moved() {
    describe();
    redraw();
    for (const fill of galleries) fill();
  }

  function typed() {
    const text = $("typed").value.trim().replace(",", ".");
    const match = /^([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*(%|[a-zµ_]*)$/i.exec(text);
    const { budgets, costs, reference } = run();
    if (!match || (match[2] && match[2] !== "%" && match[2].toLowerCase() !== costs.unit.toLowerCase())) {
      $("said").textContent = `${text} is no budget: type a number of ${costs.unit}, or a share such as 60 %.`;
      return;
    }
    const amount = match[2] === "%" ? Number(match[1]) / 100 * reference : Number(match[1]);
    let at = -1;
    budgets.forEach((budget, n) => { if (budget <= amount * (1 + 1e-3)) at = n; });
    if (at < 0) {
      $("said").textContent = `${number(amount)} ${costs.unit} is below the cost of the first exit, ${number(budgets[0])} ${costs.unit}: no budget is smaller.`;
      return;
    }
    state.at = at;
    moved();
    if (Math.abs(budgets[at] - amount) > 1e-3 * amount) $("said").textContent = `${number(amount)} ${costs.unit} was typed. The page has budgets in steps; this is the nearest one that is not above it: ${budgetText(at)}.`;
  }

  function choose(number) {
    state.run = number;
    const { styles, budgets, standing: points, reference } = run();
    const names = Object.keys(styles);
    if (!names.includes(state.scheduler)) state.scheduler = names[0];
    $("scheduler").replaceChildren(...names.map(name => element("option", { value: name }, name)));
    $("scheduler").value = state.scheduler;
    $("budget").max = budgets.length - 1;
    const aim = Math.max(.6 * reference, budgets[0]);
    state.at = budgets.reduce((best, budget, n) => points[state.scheduler][n] && Math.abs(budget - aim) < Math.abs(budgets[best] - aim) ? n : best, budgets.length - 1);
    about();
    build();
    moved();
  }

  function about() {
    const one = run();
    $("lead").textContent = `${one.title}: ${one.samples.toLocaleString("en")} samples, ${one.exits.length} exits, ${Object.keys(one.styles).length} schedulers. Costs are in ${one.costs.unit} per sample${one.costs.batch_size ? ` at batch size ${one.costs.batch_size}` : ""}.`;
    const changed = one.changes_predictions.length ? `These answer with the exits so far combined, so that an answer need not be that of its exit: ${one.changes_predictions.join(", ")}.` : "";
    $("about").replaceChildren(...[one.about, changed].filter(Boolean).map(text => element("p", { class: "soft" }, text)), ...one.notes.map(text => element("p", { class: "note" }, text)));
    if (one.command) $("about").append(element("p", { class: "soft" }, "Made with ", element("code", {}, one.command)));
  }

  // Start

  $("title").textContent = data.title;
  $("footer").textContent = `Made by eenet ${data.eenet}. This file loads nothing from elsewhere. Exits are counted from 0.`;
  if (data.runs.length) {
    $("controls").hidden = $("standing").hidden = false;
    $("run-label").hidden = data.runs.length < 2;
    $("run").replaceChildren(...data.runs.map((one, n) => element("option", { value: n }, one.name)));
    $("run").addEventListener("change", event => choose(Number(event.target.value)));
    $("scheduler").addEventListener("change", event => { state.scheduler = event.target.value; moved(); });
    $("budget").addEventListener("input", event => { state.at = Number(event.target.value); moved(); });
    $("typed").addEventListener("change", typed);
    $("controls").addEventListener("submit", event => event.preventDefault());  // Enter has already changed the box
    choose(0);
  } else build();

  const script = document.createElement("script");
  script.textContent = await unpack("plotly");
  await new Promise(painted => requestAnimationFrame(() => setTimeout(painted)));  // the text is read while Plotly starts
  document.head.append(script);
  redraw();
  dark.addEventListener("change", redraw);
  let wide = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== wide) { wide = innerWidth; redraw(); } });
  addEventListener("beforeprint", () => { for (const figure of figures) draw(figure, PAPER); });
  addEventListener("afterprint", redraw);
  document.documentElement.dataset.ready = "yes";
})();
