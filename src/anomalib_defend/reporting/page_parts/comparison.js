(() => {
  const mistakes = data.mistakes.map(([model, place, category, name, truth, share, shows, picture]) =>
    ({ model, place, category, name, truth, share, shows, picture: data.pictures[picture] }));
  const selected = () => mistakes.filter((one) => one.model === Number(at("by-model").value) &&
    (at("by-data").value === "" || one.place === Number(at("by-data").value)) &&
    (at("by-truth").value === "" || one.truth === Number(at("by-truth").value)));
  function card(one) {
    const kind = one.truth ? "novel" : "normal";
    const lines = [`${data.data[one.place]}, ${one.category}`];
    if (one.shows) lines.push(`shows ${one.shows}`);
    return figureOf({
      picture: one.picture, alt: `${one.name}, ${kind}`, name: one.name, lines, mistake: false,
      say: `${kind}, yet ${one.truth ? "lower" : "higher"} than ${(100 * one.share).toFixed(1)} % of the ${one.truth ? "normal" : "novel"} images`,
    });
  }
  data.models.forEach((name, number) => at("by-model").add(new Option(number ? name : "all, on average", number)));
  data.data.forEach((name, number) => at("by-data").add(new Option(name, number)));
  at("mistakes-section").hidden = at("mistakes-link").hidden = !mistakes.length;
  pagedGallery(selected, card).show();
})();
