(() => {
  const LEFT = 10, WIDTH = 780;
  const rows = data.rows.map(([name, score, p, truth, categories, box, bound], index) =>
    ({ name, score, p, truth, categories, box, bound, picture: data.pictures[index] }));
  const normal = rows.filter((row) => row.truth === 0);
  const novel = rows.filter((row) => row.truth === 1);
  const low = Number(at("histogram").dataset.low), high = Number(at("histogram").dataset.high);
  const first = data.threshold === null ? (low + high) / 2 : data.threshold;
  // Below the run's threshold nothing is known of images whose score is at most what the table has.
  const least = rows.some((row) => row.bound) ? first : low;
  let threshold = first;

  // A thousandth of the range is told apart: scores that are not scaled may be as small as they like.
  const decimals = Math.min(20, Math.max(4, 3 - Math.floor(Math.log10(high - low))));
  const told = (score) => score.toFixed(decimals);

  const isNovel = (row) => row.score > threshold;
  const isMistake = (row) => row.truth >= 0 && isNovel(row) !== (row.truth === 1);
  const count = (list, test) => list.reduce((sum, row) => sum + (test(row) ? 1 : 0), 0);
  const share = (part, whole) => whole ? `${part} of ${whole} (${(100 * part / whole).toFixed(1)} %)` : "none";

  // How many of `images` new normal images lie above the rank-th largest of n validation scores: beta-binomial, by the
  // ratio of neighbouring probabilities. Below the smallest score nothing is promised.
  function expectedCount(n, rank, images) {
    const b = n + 1 - rank;
    if (b < 1) return { mean: images, low: 0, high: images };
    const logs = [0];
    for (let k = 0; k < images; k++) logs.push(logs[k] + Math.log((images - k) * (rank + k) / ((k + 1) * (images - k - 1 + b))));
    const top = logs.reduce((a, c) => Math.max(a, c), -Infinity);
    const weights = logs.map((value) => Math.exp(value - top));
    const total = weights.reduce((a, c) => a + c, 0);
    const quantile = (q) => {
      let sum = 0;
      for (let k = 0; k < images; k++) { sum += weights[k] / total; if (sum >= q - 1e-12) return k; }
      return images;
    };
    return { mean: images * rank / (n + 1), low: quantile(0.025), high: quantile(0.975) };
  }

  function expectation() {
    const n = data.validation.length, images = normal.length || rows.length;
    if (!n) return "not known: the run keeps no normal validation scores";
    const expected = expectedCount(n, 1 + count(data.validation, (score) => score > threshold), images);
    const of = normal.length ? `of ${images} normal images` : `of ${images} images, if all of them were normal`;
    return `${expected.mean.toFixed(1)} ${of} (95 % interval ${expected.low} to ${expected.high}, from ${n} validation images)`;
  }

  function showFigures() {
    const called = count(rows, isNovel), alarms = count(normal, isNovel), found = count(novel, isNovel);
    const labelled = alarms + found;
    const texts = {
      threshold: told(threshold), called: share(called, rows.length), alarms: share(alarms, normal.length),
      misses: share(novel.length - found, novel.length), precision: labelled ? share(found, labelled) : "nothing is called novel",
      expected: expectation(), tn: normal.length - alarms, fp: alarms, fn: novel.length - found, tp: found,
    };
    for (const [id, text] of Object.entries(texts)) at(id).textContent = text;
    const x = LEFT + WIDTH * (threshold - low) / (high - low), slider = at("slider");
    slider.setAttribute("transform", `translate(${x.toFixed(2)} 0)`);
    slider.setAttribute("aria-valuenow", told(threshold));
    slider.setAttribute("aria-valuetext", `${told(threshold)}, ${texts.called} called novel`);
    if (at("roc-mark") && normal.length && novel.length) {
      const place = (id, across, up) => {
        at(id).setAttribute("cx", 40 + 200 * across);
        at(id).setAttribute("cy", 210 - 200 * up);
      };
      place("roc-mark", alarms / normal.length, found / novel.length);
      place("recall-mark", found / novel.length, labelled ? found / labelled : 1);
    }
  }

  // ------------------------------------------------------------------------------------------------------ categories
  const held = data.categories.map((name, number) => {
    const mine = rows.filter((row) => row.truth >= 0 && row.categories.includes(number));
    return { name, normal: mine.filter((row) => row.truth === 0), novel: mine.filter((row) => row.truth === 1) };
  });
  // Mistakes beyond those that as many images of any categories would have; at the run's threshold, so that rows stay.
  const rate = (list) => list.length ? count(list, isMistake) / list.length : 0;
  const rates = [rate(normal), rate(novel)];
  const beyond = (one) => count([...one.normal, ...one.novel], isMistake) - rates[0] * one.normal.length - rates[1] * one.novel.length;
  const order = [{ name: "all images", normal, novel }, ...[...held].sort((a, b) => beyond(b) - beyond(a))];
  function showCategories() {
    const body = at("categories").tBodies[0];
    body.replaceChildren(...order.filter((one) => one.normal.length + one.novel.length).map((one) => {
      const line = document.createElement("tr"), head = document.createElement("th");
      head.scope = "row";
      head.textContent = one.name;
      line.append(head);
      for (const text of [one.normal.length, share(count(one.normal, isMistake), one.normal.length),
                          one.novel.length, share(count(one.novel, isMistake), one.novel.length)])
        line.insertCell().textContent = text;
      return line;
    }));
  }

  // --------------------------------------------------------------------------------------------------------- gallery
  const verdicts = { novel: isNovel, normal: (row) => !isNovel(row) };
  const outcomes = {
    mistake: isMistake, alarm: (row) => row.truth === 0 && isNovel(row), miss: (row) => row.truth === 1 && !isNovel(row),
    right: (row) => row.truth >= 0 && !isMistake(row),
  };
  function selected() {
    const verdict = verdicts[at("by-verdict").value], outcome = outcomes[at("by-outcome").value];
    const category = at("by-category").value;
    const found = rows.filter((row) => (!verdict || verdict(row)) && (!outcome || outcome(row)) &&
      (category === "" || row.categories.includes(Number(category))));
    if (at("order").value === "low") found.reverse();
    if (at("order").value === "near") found.sort((a, b) => Math.abs(a.score - threshold) - Math.abs(b.score - threshold));
    return found;
  }
  function card(row) {
    const say = isNovel(row) ? "NOVEL" : "normal", truth = ["normal", "novel"][row.truth];
    const heat = at("heat").checked && row.picture && row.picture[1];
    const lines = [`score ${row.bound ? "at most " : ""}${told(row.score)}` +
      (row.p === null ? "" : `, p-value ${row.bound ? "at least " : ""}${Number(row.p.toPrecision(3))}`)];
    if (truth) lines.push(`is ${truth}`);
    if (row.categories.length) lines.push("holds " + row.categories.map((number) => data.categories[number]).join(", "));
    if (row.box) lines.push(`${isNovel(row) ? "nearest to the normal object" : "normal object found"} at ${row.box} (left, top, right, bottom)`);
    return figureOf({
      picture: row.picture && (heat || row.picture[0]), name: row.name, lines,
      alt: `${heat ? "Heat map of " : ""}${row.name}, called ${say.toLowerCase()}`,
      say: say + (isMistake(row) ? (row.truth ? ": missed" : ": false alarm") : ""), mistake: isMistake(row),
    });
  }
  const gallery = pagedGallery(selected, card);

  // ------------------------------------------------------------------------------------------------------- threshold
  let waiting = false;
  function move(value) {
    threshold = Math.min(Math.max(value, least), high);
    showFigures();
    if (waiting) return;
    waiting = true;  // the rest once a frame
    requestAnimationFrame(() => { waiting = false; showCategories(); gallery.show(); });
  }
  const slider = at("slider");
  const drag = (event) => {
    const box = at("histogram").getBoundingClientRect();
    move(low + (high - low) * ((event.clientX - box.left) * 800 / box.width - LEFT) / WIDTH);
  };
  slider.addEventListener("pointerdown", (event) => {
    slider.setPointerCapture(event.pointerId);
    slider.focus();
    event.preventDefault();
  });
  slider.addEventListener("pointermove", (event) => { if (slider.hasPointerCapture(event.pointerId)) drag(event); });
  // or a finger scrolls the page: touch-action does nothing for parts of an SVG
  slider.addEventListener("touchstart", (event) => event.preventDefault(), { passive: false });
  const steps = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 10, PageDown: -10, Home: -200, End: 200 };
  slider.addEventListener("keydown", (event) => {
    if (!(event.key in steps) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    move(threshold + steps[event.key] * (high - low) / 200);
  });
  at("reset").addEventListener("click", () => move(first));

  // ----------------------------------------------------------------------------------------------------------- start
  if (!normal.length && !novel.length) for (const one of document.querySelectorAll(".labelled")) one.hidden = true;
  data.categories.forEach((name, number) => at("by-category").add(new Option(name, number)));
  at("category-label").hidden = !data.categories.length;
  at("categories-section").hidden = !held.some((one) => one.normal.length + one.novel.length);
  at("heat-label").hidden = !rows.some((row) => row.picture && row.picture[1]);
  at("reset").hidden = data.threshold === null;
  slider.setAttribute("aria-valuemin", least);
  showFigures();
  showCategories();
  gallery.show();
})();
