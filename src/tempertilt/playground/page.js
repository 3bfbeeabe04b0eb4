// The popover over tokens, and the keyboard in answers. Every text is set as text, never as HTML.
(() => {
  const DISTRIBUTIONS = ["base", "tempered", "guided"];
  let pop, active = null, pinned = null, leaving;

  const make = (tag, text, name) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (name) element.className = name;
    return element;
  };
  const place = (token) => ({ column: token.closest(".pg-answer").dataset.column, i: Number(token.dataset.i) });
  const find = (where) => where && document.querySelector(`.pg-answer[data-column="${where.column}"] .pg-tok[data-i="${where.i}"]`);
  const same = (a, b) => a && b && a.column === b.column && a.i === b.i;
  const tokenOf = (event) => event.target.closest && event.target.closest(".pg-answer .pg-tok");

  function popover() {
    if (pop && pop.isConnected) return pop;
    pop = make("div", undefined, "pg-pop");
    pop.id = "pg-pop";
    pop.hidden = true;
    pop.setAttribute("role", "status");
    pop.addEventListener("pointerenter", () => clearTimeout(leaving));
    pop.addEventListener("pointerleave", leave);
    (document.querySelector(".gradio-container") || document.body).append(pop);
    return pop;
  }

  function sentence(step) {
    if (step.gate === 0) return "The gate is closed: the three distributions are one, whatever the head says.";
    if (step.replied) return "The gate is open: the unlearned model says its reply, whatever base and head say.";
    const parts = [`logits divided by ${step.temperature}`];
    if (step.weight !== null) parts.push(`${step.weight} nats for this token (log-odds ${step.log_odds})`);
    return "Here: " + parts.join(", ") + ".";
  }

  function fill(step) {
    const box = popover();
    const head = make("header");
    const name = make("b", step.text);
    name.prepend(make("small", "token"));
    head.append(name);
    if (pinned) {
      const close = make("button", "close (Esc)");
      close.type = "button";
      close.addEventListener("click", () => unpin(true));
      head.append(close);
    }
    const rating = step.retain === null ? "The head does not rate this token."
      : `P(retain) = ${step.retain}: ${{ "forget-strong": "clearly forget text", forget: "rather forget text", even: "undecided",
        retain: "rather retain text", "retain-strong": "clearly retain text" }[step.band]}.`;
    const table = make("table"), top = make("thead"), body = make("tbody"), titles = make("tr");
    for (const title of ["next token", ...DISTRIBUTIONS, "P(retain)"]) {
      const cell = make("th", title);
      cell.scope = "col";
      titles.append(cell);
    }
    top.append(titles);
    for (const row of step.rows) {
      const line = make("tr", undefined, row.chosen ? "chosen" : "");
      const name = make("th", (row.chosen ? "▶ " : "") + row.text);
      name.scope = "row";
      name.title = row.text;
      line.append(name);
      row.shares.forEach(([text, percent], k) => {
        const cell = make("td", text), bar = make("i");
        bar.style.setProperty("--p", percent + "%");
        bar.style.setProperty("--colour", `var(--pg-${DISTRIBUTIONS[k]})`);
        cell.append(bar);
        line.append(cell);
      });
      line.append(make("td", row.retain === null ? "–" : row.retain));
      body.append(line);
    }
    table.append(top, body);
    const parts = [head, make("p", rating), table, make("p", sentence(step), "pg-soft")];
    if (step.turned) parts.push(make("p", "▾ The two models would go on with different tokens here.", "pg-soft"));
    if (!pinned) parts.push(make("p", "Click or press Enter to keep this open while you move the sliders.", "pg-soft"));
    box.replaceChildren(...parts);
  }

  function show(token) {
    clearTimeout(leaving);
    active = place(token);
    fill(JSON.parse(token.dataset.step));
    const box = popover(), at = token.getBoundingClientRect();
    token.setAttribute("aria-describedby", "pg-pop");
    box.hidden = false;
    const left = Math.max(12, Math.min(at.left, innerWidth - box.offsetWidth - 12));
    const below = at.bottom + 8;
    const above = at.top - box.offsetHeight - 8;
    const top = below + box.offsetHeight < innerHeight || above < 0 ? below : above;
    box.style.left = left + "px";
    box.style.top = top + "px";
  }

  function hide() {
    active = null;
    popover().hidden = true;
  }
  function leave() {
    if (pinned) return;
    clearTimeout(leaving);
    leaving = setTimeout(hide, 180);
  }
  function mark() {
    document.querySelectorAll('.pg-tok[aria-selected="true"]').forEach((token) => token.setAttribute("aria-selected", "false"));
    const token = find(pinned);
    if (token) token.setAttribute("aria-selected", "true");
  }
  function pin(token) {
    if (same(pinned, place(token))) return unpin(false);
    pinned = place(token);
    mark();
    show(token);
    const missing = token.getBoundingClientRect().bottom + popover().offsetHeight + 16 - innerHeight;
    if (missing > 0) {  // room below, so that the sliders stay in sight
      scrollBy({ top: missing, behavior: "instant" });
      show(token);
    }
  }
  function unpin(focus) {
    const token = find(pinned);
    pinned = null;
    mark();
    hide();
    if (focus && token) token.focus();
    if (focus) hide();
  }

  document.addEventListener("pointerover", (event) => {
    const token = tokenOf(event);
    if (token && !pinned && event.pointerType !== "touch") show(token);
  });
  document.addEventListener("pointerout", (event) => { if (tokenOf(event)) leave(); });
  document.addEventListener("focusin", (event) => {
    const token = tokenOf(event);
    if (token && !pinned && token.matches(":focus-visible")) show(token);
  });
  document.addEventListener("focusout", (event) => { if (tokenOf(event)) leave(); });
  document.addEventListener("click", (event) => {
    const token = tokenOf(event);
    if (token) pin(token);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !popover().hidden) {
      if (pinned) unpin(true); else hide();
      return;
    }
    const token = tokenOf(event);
    if (!token) return;
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      pin(token);
      return;
    }
    const all = [...token.parentElement.querySelectorAll(".pg-tok")], at = all.indexOf(token);
    const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: all.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const next = all[Math.max(0, Math.min(all.length - 1, to))];
    all.forEach((other) => { other.tabIndex = other === next ? 0 : -1; });
    next.focus();
    if (pinned) { pinned = place(next); mark(); show(next); }
  });
  addEventListener("scroll", () => { if (active && !popover().hidden && find(active)) show(find(active)); }, { passive: true });

  // an answer is written anew while it grows and when sliders move: an open popover stays open, the focused token keeps the focus
  let focused = null;
  document.addEventListener("focusin", (event) => { const token = tokenOf(event); focused = token ? place(token) : null; });
  const renew = () => {
    if (focused && document.activeElement === document.body && find(focused)) {
      const token = find(focused);
      token.parentElement.querySelectorAll(".pg-tok").forEach((other) => { other.tabIndex = other === token ? 0 : -1; });
      token.focus({ preventScroll: true });
    }
    mark();
    const token = find(pinned || active);
    if (token && !popover().hidden) show(token);
    else if (!token && active && !pinned) hide();
  };
  let due = false;
  const written = (record) => {
    const at = record.target;
    return at.nodeType === 1 && !at.closest("#pg-pop") && (at.closest(".pg-answer") !== null || at.querySelector(".pg-answer") !== null);
  };
  new MutationObserver((records) => {
    if (due || !records.some(written)) return;
    due = true;
    requestAnimationFrame(() => { due = false; renew(); });
  }).observe(document.documentElement, { childList: true, subtree: true, attributes: true, attributeFilter: ["data-step"] });
})();
