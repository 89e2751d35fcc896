"use strict";
// One global, MCPL: open(list) with what index.html holds, chunk(number, rows) with what a data file holds.
const MCPL = (() => {
  const DIMMED = 0.5; // of a picture's light where no attention is
  const FRAME_MS = 5; // of a frame that new cards may take
  const at = (id) => document.getElementById(id);
  const chunks = new Map(); // number -> {rows, waiting}
  let list, heat, byId, shown = [], page = 0, detail = -1, opener = null;

  // ---- making elements: text is always text ---------------------------------------------------------------------
  function make(kind, options = {}, ...inside) {
    const element = document.createElement(kind);
    for (const [name, value] of Object.entries(options)) {
      if (name === "class") element.className = value;
      else if (name.startsWith("--")) element.style.setProperty(name, value);
      else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...inside.filter((one) => one !== null && one !== undefined));
    return element;
  }
  function draw(kind, options = {}, ...inside) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", kind);
    for (const [name, value] of Object.entries(options)) element.setAttribute(name, value);
    element.append(...inside);
    return element;
  }
  const readable = (name) => name.replaceAll("_", " ").replace(/\biou\b/, "IoU");
  const number = (value, digits = 3) => (value === null || value === undefined ? "–" : value.toFixed(digits));
  const colour = (place) => list.colours[(place || 0) % list.colours.length];
  const tint = (place) => ({ "--colour": colour(place)[0], "--on": colour(place)[1] });
  const smaller = (name) => list.smaller.includes(name); // scores that are better when smaller

  // ---- data files, read when they are needed -----------------------------------------------------------------------
  function chunk(place, rows) {
    const kept = chunks.get(place) || { waiting: [] };
    chunks.set(place, { rows, waiting: [] });
    kept.waiting.forEach((go) => go());
  }
  function need(index) {
    const place = Math.floor(index / list.chunk), row = () => chunks.get(place).rows[index % list.chunk];
    const kept = chunks.get(place);
    if (kept && kept.rows) return Promise.resolve(row());
    return new Promise((done) => {
      if (kept) return kept.waiting.push(() => done(row()));
      chunks.set(place, { waiting: [() => done(row())] });
      const script = document.createElement("script");
      script.src = `data/${String(place).padStart(4, "0")}.js`;
      document.head.append(script);
    });
  }

  // ---- maps ---------------------------------------------------------------------------------------------------------
  function levels(word, which) {
    const text = atob(word[which]);
    return Uint8Array.from(text, (letter) => letter.charCodeAt(0));
  }
  function heated(word, which) {
    const values = levels(word, which), side = word.side, pixels = new ImageData(side, side);
    values.forEach((value, i) => {
      // picture * DIMMED * (1 - o) + heat * o, as one layer over the picture: cheaper to scroll than a filter
      const opacity = list.strongest * Math.pow(value / 255, 0.75), cover = 1 - DIMMED * (1 - opacity);
      for (let c = 0; c < 3; c++) pixels.data[4 * i + c] = (heat[3 * value + c] * opacity) / cover;
      pixels.data[4 * i + 3] = 255 * cover;
    });
    const canvas = make("canvas", { width: side, height: side, "aria-hidden": "true" });
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    return canvas;
  }
  function masked(word, place, threshold, canvas) {
    // the map, enlarged smoothly, cut at a share of its maximum: veiled outside, an edge in the word's colour
    const side = 192, small = make("canvas", { width: word.side, height: word.side }), pixels = new ImageData(word.side, word.side);
    levels(word, "after").forEach((value, i) => pixels.data.set([value, value, value, 255], 4 * i));
    small.getContext("2d").putImageData(pixels, 0, 0);
    canvas.width = canvas.height = side;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.imageSmoothingQuality = "high";
    context.drawImage(small, 0, 0, side, side);
    const image = context.getImageData(0, 0, side, side), inside = new Uint8Array(side * side);
    for (let i = 0; i < inside.length; i++) inside[i] = image.data[4 * i] >= 255 * threshold ? 1 : 0;
    const edge = parseInt(colour(place)[0].slice(1), 16), rgb = [edge >> 16, (edge >> 8) & 255, edge & 255];
    for (let i = 0; i < inside.length; i++) {
      const column = i % side, near = inside[i] && (!inside[i - 2] || !inside[i + 2] || !inside[i - 2 * side] || !inside[i + 2 * side] || column < 2 || column >= side - 2);
      image.data.set(near ? [...rgb, 255] : [8, 10, 14, inside[i] ? 0 : 205], 4 * i);
    }
    context.putImageData(image, 0, 0);
  }

  // ---- parts that the gallery and the detail share ------------------------------------------------------------------
  function picture(row, told, lazy = true) {
    if (!row.picture) return make("span", { class: "none" }, "no picture");
    const image = make("img", { src: row.picture, alt: told, loading: lazy ? "lazy" : null, decoding: "async" });
    image.addEventListener("load", () => image.classList.toggle("pixels", image.naturalWidth <= 128));
    return image;
  }
  function look(row, place, which, extra = "") {
    const word = row.words[place];
    return make("div", { class: "look word", role: "img", "aria-label": `where <${word.slug}> looks${extra}`, ...tint(place) },
      picture(word.picture ? word : row, ""), heated(word, which));
  }
  function sentence(parts) {
    const told = make("span", { class: "sentence" });
    parts.forEach((part, i) => {
      if (i && !(typeof part === "string" && /^[,.;:!?]/.test(part))) told.append(" ");
      if (typeof part === "string") told.append(part);
      else told.append(make("span", { class: part[2] ? "chip" : "adjective", ...tint(part[1]) }, part[0]));
    });
    return told;
  }

  // ---- the gallery ----------------------------------------------------------------------------------------------------
  const watcher = new IntersectionObserver((seen) => {
    for (const one of seen) if (one.isIntersecting) { watcher.unobserve(one.target); fetch_card(one.target); }
  }, { rootMargin: "700px" });
  const ready = []; // cards whose data are there: a few are drawn in each frame, so that scrolling stays smooth
  async function fetch_card(item) {
    const row = await need(item.index);
    if (!ready.length) requestAnimationFrame(fill_some);
    ready.push([item, row]);
  }
  function fill_some() {
    const end = performance.now() + FRAME_MS;
    while (ready.length && performance.now() < end) fill(...ready.shift());
    if (ready.length) requestAnimationFrame(fill_some);
  }

  function card(index) {
    const button = make("button", { class: "card", type: "button", onclick: () => open_detail(index) });
    button.append(make("div", { class: "looks" }, make("div", { class: "look" })), make("span", { class: "sentence" }, list.text[index]), foot(index));
    const item = make("li", {}, button);
    item.index = index;
    watcher.observe(item);
    return item;
  }
  function foot(index) {
    const by = at("sort").value, value = list.scores[by] && list.scores[by][index];
    return make("span", { class: "foot" }, make("span", { class: "id", title: list.id[index] }, list.id[index]),
      ...list.signs_of[index].map((sign) => make("span", { class: "badge" }, readable(list.signs[sign]))),
      value === null || value === undefined ? null : make("span", { class: "score" }, `${readable(by)} ${number(value)}`));
  }
  function fill(item, row) {
    const index = item.index, button = item.firstChild;
    const looks = make("div", { class: "looks" }, make("div", { class: "look" }, picture(row, `picture ${list.id[index]}`)));
    (row.words || []).forEach((_, place) => looks.append(look(row, place, "after")));
    button.replaceChildren(looks, sentence(row.sentence), ...(row.reason ? [make("span", { class: "reason" }, row.reason)] : []), foot(index));
    item.dataset.filled = "1";
  }

  // ---- filtering, sorting, paging ------------------------------------------------------------------------------------
  function wanted(index, ask, score) {
    if (ask.status && list.status[index] !== ask.status) return false;
    if (ask.sign === "*" ? !list.signs_of[index].length : ask.sign === "-" ? list.signs_of[index].length : ask.sign !== "" && !list.signs_of[index].includes(Number(ask.sign))) return false;
    if (ask.word && !list.words[index].some((word) => ask.exact ? word === ask.word : word.includes(ask.word))) return false;
    if (ask.find && !list.lower[index].includes(ask.find)) return false;
    return !score || ((ask.from === null || (score[index] ?? -Infinity) >= ask.from) && (ask.to === null || (score[index] ?? Infinity) <= ask.to));
  }
  function asked() {
    const bound = (id) => (at(id).value === "" ? null : Number(at(id).value));
    const word = at("word").value.trim().toLowerCase().replace(/[<>]/g, "");
    return { find: at("find").value.trim().toLowerCase(), word, exact: list.count_of.has(word), sign: at("sign").value, status: at("status").value, from: bound("from"), to: bound("to") };
  }
  function choose() {
    const ask = asked(), by = at("sort").value, score = list.scores[by], down = at("order").getAttribute("aria-pressed") === "true" ? -1 : 1;
    const free = [];
    shown = [];
    for (let index = 0; index < list.id.length; index++) {
      if (!wanted(index, { ...ask, from: null, to: null }, null)) continue;
      free.push(index);
      if (wanted(index, ask, score)) shown.push(index);
    }
    if (score) shown.sort((a, b) => rank(score[a], score[b], down) || a - b);
    else if (by === "id") shown.sort((a, b) => down * (list.id[a] < list.id[b] ? -1 : list.id[a] > list.id[b] ? 1 : 0));
    else if (down < 0) shown.reverse();
    at("range").hidden = !score;
    if (score) histogram(free.map((index) => score[index]).filter((value) => value !== null), ask, by);
    page = 0;
    paint();
  }
  const rank = (a, b, down) => (a === null || b === null ? (a === null) - (b === null) : down * (a - b)); // without one: last

  function histogram(values, ask, by) {
    const low = Math.min(...values), high = Math.max(...values), bars = 24, counts = new Array(bars).fill(0);
    for (const value of values) counts[Math.min(bars - 1, Math.floor(((value - low) / (high - low || 1)) * bars))]++;
    const most = Math.max(1, ...counts), plot = draw("svg", { viewBox: "0 0 168 40", preserveAspectRatio: "none" });
    counts.forEach((count, bar) => {
      const from = low + (bar * (high - low)) / bars, to = low + ((bar + 1) * (high - low)) / bars, height = count ? 2 + (38 * count) / most : 0;
      const inside = (ask.from === null || to > ask.from) && (ask.to === null || from <= ask.to);
      plot.append(draw("rect", { x: bar * 7, y: 40 - height, width: 6, height, rx: 1, class: inside ? "in" : "" }));
    });
    at("histogram").replaceChildren(plot);
    at("histogram").setAttribute("aria-label", values.length ? `${readable(by)}: ${values.length} pictures from ${number(low)} to ${number(high)}` : "no scores");
    at("from").placeholder = values.length ? number(low, 2) : "";
    at("to").placeholder = values.length ? number(high, 2) : "";
  }
  function paint() {
    const each = Number(at("each").value), pages = Math.max(1, Math.ceil(shown.length / each));
    page = Math.max(0, Math.min(page, pages - 1));
    watcher.disconnect();
    ready.length = 0;
    at("gallery").replaceChildren(...shown.slice(page * each, (page + 1) * each).map(card));
    at("found").value = shown.length === list.id.length ? `${shown.length} pictures` : `${shown.length} of ${list.id.length} pictures`;
    at("page").value = page + 1;
    at("page").max = pages;
    at("pages").textContent = `of ${pages}`;
    at("first").disabled = at("back").disabled = page === 0;
    at("next").disabled = at("last").disabled = page === pages - 1;
  }
  function turn(to) {
    page = to;
    paint();
    at("gallery").scrollIntoView({ block: "start" });
    at("gallery").focus({ preventScroll: true });
  }

  // ---- everything about one picture ------------------------------------------------------------------------------------
  async function open_detail(index) {
    const row = await need(index), box = at("detail");
    if (!box.open) opener = document.activeElement;
    detail = index;
    const place = shown.indexOf(index);
    const step = (by, label, sign) => make("button", { type: "button", "aria-label": label, title: label, disabled: !shown[place + by] && shown[place + by] !== 0, onclick: () => open_detail(shown[place + by]) }, sign);
    box.replaceChildren(
      make("div", { class: "top" }, make("h2", { id: "detail-title" }, sentence(row.sentence)), step(-1, "Previous picture", "‹"), step(1, "Next picture", "›"),
        make("button", { type: "button", "aria-label": "Close", title: "Close", onclick: () => box.close() }, "✕")),
      make("div", { class: "body" }, left(index, row), right(row)));
    if (!box.open) box.showModal();
    box.scrollTop = 0;
    address(`#${encodeURIComponent(list.id[index])}`);
  }
  function left(index, row) {
    const told = make("div", {}, make("div", { class: "look big" }, picture(row, `picture ${list.id[index]}`, false)));
    if (row.reason) told.append(make("p", { class: "advice" }, `${list.status[index]}: ${row.reason}`));
    const scores = Object.keys(list.scores).filter((name) => list.scores[name][index] !== null && !(name.endsWith("_step0") && list.scores[name.slice(0, -6)]));
    if (scores.length) told.append(make("h2", {}, "Scores"), make("table", {}, make("thead", {}, make("tr", {}, make("th", {}, ""), make("th", { class: "n" }, "before"), make("th", { class: "n" }, "after"))), make("tbody", {}, ...scores.map((name) => score_row(name, index)))));
    for (const sign of list.signs_of[index]) told.append(make("h2", {}, `Sign of failure: ${readable(list.signs[sign])}`), make("p", { class: "advice" }, list.advice[list.signs[sign]] || ""));
    told.append(make("h2", {}, "Where it comes from"), make("dl", { class: "origin" }, make("dt", {}, "picture"), make("dd", {}, list.id[index]),
      ...Object.entries(row.provenance).flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, String(value))])));
    return told;
  }
  function score_row(name, index) {
    const before = list.scores[`${name}_step0`] ? list.scores[`${name}_step0`][index] : null, after = list.scores[name][index];
    const gain = before === null ? 0 : Math.sign(after - before) * (smaller(name) ? -1 : 1);
    return make("tr", {}, make("th", { scope: "row" }, readable(name)), make("td", { class: "n" }, before === null ? "" : number(before)),
      make("td", { class: `n ${gain > 0 ? "better" : gain < 0 ? "worse" : ""}` }, number(after)));
  }
  function right(row) {
    const told = make("div", {}), masks = [];
    if (!row.words) return told;
    told.append(make("h2", {}, "Words"));
    row.words.forEach((word, place) => {
      const canvas = make("canvas", { "aria-hidden": "true" }), view = look(row, place, "after");
      const mask = make("div", { class: "look", role: "img", "aria-label": `mask of <${word.slug}>`, ...tint(place) }, picture(word.picture ? word : row, ""), canvas);
      masks.push((threshold) => masked(word, place, threshold, canvas));
      const figure = (what, label) => make("figure", {}, what, make("figcaption", {}, label));
      told.append(make("section", { class: "wordrow", "aria-label": word.slug },
        make("h3", {}, make("span", { class: "chip", ...tint(place) }, `<${word.slug}>`), word.start ? `started as ${word.start}` : null,
          make("span", {}, `${word.vectors[0]} ${word.vectors[0] === 1 ? "vector" : "vectors"} of ${word.vectors[1]}, length ${number(word.norm, 2)}`)),
        make("div", { class: "views" }, figure(look(row, place, "before", " before learning"), "looks here before"), figure(view, "looks here after"), figure(mask, "its mask"), near(word)),
        word.samples ? strip(word.samples, `drawn from <${word.slug}> alone`) : null));
    });
    const slider = make("input", { type: "range", min: 5, max: 95, value: 50, id: "threshold" }), said = make("output", { for: "threshold" });
    const cut = () => { said.value = `${slider.value} % of the maximum`; masks.forEach((mask) => mask(slider.value / 100)); };
    slider.addEventListener("input", cut);
    told.append(make("label", { class: "slider" }, "masks from", slider, said));
    cut();
    if (row.together) told.append(make("h2", {}, "The whole sentence, drawn with the learned words"), strip(row.together, "drawn from the whole sentence"));
    told.append(make("h2", {}, "Curves"), curves(row));
    return told;
  }
  function strip([address, count], told) {
    // one file holds them side by side; each is shown by itself, since their grounds are often alike
    const tiles = Array.from({ length: count }, (_, i) => {
      const image = make("img", { src: address, alt: "", loading: "lazy" });
      image.addEventListener("load", () => image.classList.toggle("pixels", image.naturalHeight <= 128));
      return make("div", { class: "look tile-of", "--count": count, "--place": i }, image);
    });
    return make("figure", { class: "whole" }, make("div", { class: "strip", role: "img", "aria-label": `${count} ${count === 1 ? "picture" : "pictures"} ${told}` }, ...tiles), make("figcaption", {}, told));
  }
  function near(word) {
    const items = word.near.map(([slug, id, cosine]) => make("li", {}, byId.has(id)
      ? make("button", { type: "button", title: id, onclick: () => open_detail(byId.get(id)) }, `<${slug}> of ${id}`)
      : make("span", {}, `<${slug}> of ${id}`), make("span", {}, cosine.toFixed(3))));
    return make("div", { class: "near" }, make("figcaption", {}, items.length ? "nearest other words, cosine" : "no other word to compare"), make("ul", {}, ...items));
  }
  function curves(row) {
    const steps = row.curve.step, told = make("div", { class: "curves" }), last = steps[steps.length - 1];
    for (const name of Object.keys(row.curve).filter((one) => one !== "step")) told.append(curve(readable(name), row.curve[name], steps));
    for (const [term, values] of Object.entries(row.losses)) told.append(curve(`${readable(term)} in training`, values, values.map((_, i) => ((i + 0.5) / values.length) * last)));
    return told;
  }
  function curve(name, values, steps) {
    const points = values.map((value, i) => [steps[i], value]).filter(([, value]) => value !== null), all = points.map(([, value]) => value);
    const low = Math.min(...all), high = Math.max(...all), end = Math.max(1, steps[steps.length - 1]);
    const path = points.map(([step, value], i) => `${i ? "L" : "M"}${((200 * step) / end).toFixed(1)} ${(74 - (70 * (value - low)) / (high - low || 1)).toFixed(1)}`).join("");
    const text = points.length ? `${number(all[0])} → ${number(all[all.length - 1])}` : "";
    return make("figure", { class: "curve" }, make("figcaption", {}, make("span", {}, name), make("span", {}, text)),
      draw("svg", { viewBox: "0 0 200 78", preserveAspectRatio: "none", role: "img", "aria-label": `${name}, ${text}` }, draw("line", { x1: 0, x2: 200, y1: 77, y2: 77 }), draw("path", { d: path })));
  }
  function address(hash) {
    try { history.replaceState(null, "", hash); } catch { /* a page within a page may not have an address */ }
  }

  // ---- start ---------------------------------------------------------------------------------------------------------
  function options(select, pairs) {
    select.replaceChildren(...pairs.map(([value, text]) => make("option", { value }, text)));
  }
  function open(told) {
    list = { ...told, signs_of: told.seen };
    heat = Uint8Array.from(list.heat.match(/../g), (pair) => parseInt(pair, 16));
    byId = new Map(list.id.map((id, index) => [id, index]));
    list.lower = list.text.map((text, index) => `${text} ${list.id[index]}`.toLowerCase());
    list.count_of = new Map();
    for (const words of list.words) for (const word of words) list.count_of.set(word, (list.count_of.get(word) || 0) + 1);
    at("note").hidden = !list.note;
    at("note").textContent = list.note;
    at("facts").replaceChildren(...list.facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
    tiles();
    const words = [...list.count_of].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1)).slice(0, 400);
    at("words").replaceChildren(...words.map(([word, count]) => make("option", { value: word }, `${count}`)));
    const seen = (sign) => list.signs_of.filter((signs) => signs.includes(sign)).length;
    const some = list.signs_of.filter((signs) => signs.length).length;
    options(at("sign"), [["", "any or none"], ["*", `any (${some})`], ["-", `none (${list.id.length - some})`], ...list.signs.map((name, sign) => [sign, `${readable(name)} (${seen(sign)})`])]);
    const statuses = [...new Set(list.status)];
    options(at("status"), [["", "any"], ...statuses.map((status) => [status, status])]);
    const names = Object.keys(list.scores).filter((name) => !name.endsWith("_step0"));
    options(at("sort"), [["", "the dataset's order"], ["id", "picture id"], ...names.map((name) => [name, readable(name)])]);
    const ramp = Array.from({ length: 9 }, (_, i) => `rgb(${heat.subarray(3 * Math.round(31.8 * i), 3 * Math.round(31.8 * i) + 3).join(" ")})`);
    document.querySelector(".ramp").style.background = `linear-gradient(90deg, ${ramp.join(", ")})`;
    let late = 0;
    for (const id of ["find", "word", "from", "to"]) at(id).addEventListener("input", () => { clearTimeout(late); late = setTimeout(choose, 120); });
    for (const id of ["sign", "status"]) at(id).addEventListener("change", choose);
    at("sort").addEventListener("change", () => { at("from").value = at("to").value = ""; choose(); });
    at("order").addEventListener("click", () => { order(at("order").getAttribute("aria-pressed") !== "true"); choose(); });
    at("filters").addEventListener("submit", (event) => event.preventDefault());
    at("filters").addEventListener("reset", () => setTimeout(() => { order(false); choose(); }));
    at("each").addEventListener("change", () => { page = 0; paint(); });
    at("page").addEventListener("change", () => turn(Number(at("page").value) - 1));
    at("first").addEventListener("click", () => turn(0));
    at("back").addEventListener("click", () => turn(page - 1));
    at("next").addEventListener("click", () => turn(page + 1));
    at("last").addEventListener("click", () => turn(Infinity));
    at("theme").addEventListener("click", () => {
      const root = document.documentElement, dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
      root.dataset.theme = dark ? "light" : "dark";
    });
    at("detail").addEventListener("close", () => { address("#"); if (opener && opener.isConnected) opener.focus(); });
    at("detail").addEventListener("click", (event) => { if (event.target === at("detail")) at("detail").close(); });
    document.addEventListener("keydown", keys);
    choose();
    const wanted = decodeURIComponent(location.hash.slice(1));
    if (byId.has(wanted)) open_detail(byId.get(wanted));
    document.documentElement.dataset.ready = "1";
  }
  function order(down) {
    at("order").setAttribute("aria-pressed", String(down));
    at("order").textContent = down ? "↓ descending" : "↑ ascending";
  }
  function keys(event) {
    if (at("detail").open && !/^(INPUT|SELECT)$/.test(event.target.tagName)) {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key], to = shown[shown.indexOf(detail) + by];
      if (by && to !== undefined) { event.preventDefault(); open_detail(to); }
    } else if (event.key === "/" && event.target === document.body) { event.preventDefault(); at("find").focus(); }
  }
  function tiles() {
    const mean = (values) => { const real = values.filter((value) => value !== null); return real.length ? real.reduce((a, b) => a + b, 0) / real.length : null; };
    const names = Object.keys(list.scores).filter((name) => !name.endsWith("_step0"));
    at("scores").replaceChildren(...names.map((name) => {
      const after = mean(list.scores[name]), before = list.scores[`${name}_step0`] ? mean(list.scores[`${name}_step0`]) : null;
      const gain = before === null || Math.abs(after - before) < 5e-4 ? 0 : Math.sign(after - before) * (smaller(name) ? -1 : 1);
      return make("div", { class: "tile" }, make("span", {}, readable(name)), make("b", { class: gain > 0 ? "better" : gain < 0 ? "worse" : "" }, number(after)),
        make("small", {}, before === null ? "mean" : `before ${number(before)}`));
    }));
  }
  return { open, chunk };
})();
