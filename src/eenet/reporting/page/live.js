// What `eenet ui` adds to the page of a report: it loads it again when the results change, and keeps what was chosen.
(() => {
  "use strict";
  const KEY = "eenet-ui", EVERY = 2000;
  const $ = id => document.getElementById(id);
  const line = document.createElement("p");
  line.id = "live";
  line.setAttribute("role", "status");
  line.style.cssText = "position:fixed;right:.5rem;bottom:.5rem;margin:0;padding:.2rem .7rem;border:1px solid var(--line);border-radius:.5rem;background:var(--panel);color:var(--soft);font-size:.8rem;z-index:6;max-width:calc(100vw - 1rem)";
  document.body.append(line);
  history.scrollRestoration = "manual";
  const figures = () => [...document.querySelectorAll("figure")];
  let version = null, loaded = new Date().toLocaleTimeString();

  const keep = () => {
    const open = [...document.querySelectorAll("details")].map(one => one.open);
    const place = figures().findIndex(one => one.getBoundingClientRect().bottom > 0);
    const top = place < 0 ? scrollY : figures()[place].getBoundingClientRect().top;
    const chosen = { run: $("run").value, scheduler: $("scheduler").value, typed: $("typed").value, place, top, open };
    sessionStorage.setItem(KEY, JSON.stringify(chosen));
  };

  const again = () => {
    const kept = JSON.parse(sessionStorage.getItem(KEY) || "null");
    sessionStorage.removeItem(KEY);
    if (!kept) return;
    const choose = (id, value) => {
      if (![...$(id).options].some(one => one.value === value)) return;
      $(id).value = value;
      $(id).dispatchEvent(new Event("change"));
    };
    choose("run", kept.run);
    choose("scheduler", kept.scheduler);
    $("typed").value = kept.typed;
    $("typed").dispatchEvent(new Event("change"));
    document.querySelectorAll("details").forEach((one, n) => { one.open = Boolean(kept.open[n]); });
    const back = () => {
      const figure = figures()[kept.place];
      if (figure) scrollBy(0, figure.getBoundingClientRect().top - kept.top);
      else scrollTo(0, kept.place < 0 ? kept.top : 0);
    };
    back();
    setTimeout(back, 300);  // figures get their height when they come into view
  };

  const ready = () => new Promise(done => {
    const look = () => document.documentElement.dataset.ready ? done() : setTimeout(look, 50);
    look();
  });

  async function look() {
    try {
      const status = await (await fetch("/status")).json();
      const going = status.runs.map(run => run.steps.find(one => one.state === "next")).filter(Boolean);
      if (version !== null && status.version !== version) { keep(); location.reload(); return; }
      version = status.version;
      line.textContent = status.building ? "Live: the page is being made again."
        : going.length ? `Live: a run is at the step ${going[0].step}; these are the results before it.`
        : `Live since ${loaded}.` + (status.error ? ` The results changed, but the page is as before: ${status.error}` : "");
    } catch (error) {
      line.textContent = "Not live: eenet ui does not answer. The page stays as it is.";
    }
    setTimeout(look, EVERY);
  }

  ready().then(again).then(look);
})();
