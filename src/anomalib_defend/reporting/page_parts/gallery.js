"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);

// A picture with what is said of it; names are text, whatever they hold.
function figureOf({ picture, alt, say, lines, name, mistake }) {
  const figure = document.createElement("figure"), caption = document.createElement("figcaption");
  figure.className = mistake ? "mistake" : "";
  if (picture) {
    const image = document.createElement("img");
    image.src = "data:image/webp;base64," + picture;
    image.alt = alt;
    figure.append(image);
  } else {
    const none = document.createElement("div");
    none.className = "none";
    none.textContent = "no picture in this page";
    figure.append(none);
  }
  for (const [text, kind] of [[say, "say"], ...lines.map((line) => [line, ""]), [name, "name"]]) {
    const line = document.createElement("div");
    line.textContent = text;
    line.className = kind;
    caption.append(line);
  }
  figure.append(caption);
  return figure;
}

// Shows the items that the form "filters" selects, some at a time.
function pagedGallery(selected, card) {
  const PAGE = 48;
  let page = 0;
  function show() {
    const found = selected(), last = Math.max(0, Math.ceil(found.length / PAGE) - 1);
    page = Math.min(page, last);
    const shown = found.slice(page * PAGE, (page + 1) * PAGE);
    at("gallery").replaceChildren(...shown.map(card));
    at("count").textContent = found.length
      ? `${page * PAGE + 1} to ${page * PAGE + shown.length} of ${found.length} images` : "No image is so.";
    at("previous").disabled = page === 0;
    at("next").disabled = page === last;
  }
  at("filters").addEventListener("submit", (event) => event.preventDefault());
  at("filters").addEventListener("change", () => { page = 0; show(); });
  at("previous").addEventListener("click", () => { page--; show(); });
  at("next").addEventListener("click", () => { page++; show(); });
  return { show };
}
