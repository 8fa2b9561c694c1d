"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);

  // Tables that sort by a click on a heading.
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.querySelectorAll("thead th")];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const rising = head.getAttribute("aria-sort") === "descending";
        heads.forEach((each) => each.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", rising ? "ascending" : "descending");
        const value = (row) => row.children[column].textContent.replaceAll(",", "");
        const compare = (a, b) => column ? (parseFloat(value(a)) || -1) - (parseFloat(value(b)) || -1) : value(b).localeCompare(value(a));
        const rows = [...table.tBodies[0].rows].sort((a, b) => rising ? compare(a, b) : compare(b, a));
        table.tBodies[0].append(...rows);
      });
    });
  }

  if (!data.images.length) return;

  // ---- images
  const layers = { hits: true, misses: true, alarms: true, starts: false, density: false };
  const filter = { class: "", cause: "" };
  const STYLE = {
    hits: ["--hit", []], misses: ["--miss", [4, 2]], alarms: ["--alarm", [1.5, 2]],
  };
  const INFERNO = ["000004", "1f0c48", "550f6d", "88226a", "ba3655", "e35933", "f98c0a", "f9c932", "fcffa4"];
  const colours = Array.from({ length: 256 }, (_, i) => {
    const place = (i / 255) * (INFERNO.length - 1), low = Math.min(Math.floor(place), INFERNO.length - 2), part = place - low;
    return [0, 2, 4].map((at) => {
      const [a, b] = [INFERNO[low], INFERNO[low + 1]].map((hex) => parseInt(hex.slice(at, at + 2), 16));
      return Math.round(a + (b - a) * part);
    });
  });

  const fits = (box) => (!filter.class || box[4] === +filter.class) && (!filter.cause || box[5] === filter.cause);
  const shown = (image, layer) => image[layer].filter((box) =>
    layer === "hits" ? !filter.cause && fits(box) : fits(box));

  function densityLayer(image) {
    if (image.layer) return image.layer;
    const { width, height, cells } = image.density;
    const bytes = Uint8Array.from(atob(cells), (c) => c.charCodeAt(0));
    const canvas = Object.assign(document.createElement("canvas"), { width, height });
    const pixels = new ImageData(width, height);
    bytes.forEach((value, i) => pixels.data.set([...colours[value], Math.min(235, 40 + value * 1.1)], 4 * i));
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    return (image.layer = canvas);
  }

  function draw(canvas, image, picture) {
    const ratio = window.devicePixelRatio || 1;
    const width = canvas.clientWidth || parseFloat(canvas.style.width), scale = (width * ratio) / image.width;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(image.height * scale);
    const pen = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
    if (picture) {
      pen.imageSmoothingEnabled = scale < 3;
      pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
    }
    if (layers.density && image.density) {
      pen.imageSmoothingEnabled = true;
      pen.drawImage(densityLayer(image), 0, 0, canvas.width, canvas.height);
    }
    for (const layer of ["hits", "alarms", "misses"]) {
      if (!layers[layer]) continue;
      const [colour, dash] = STYLE[layer];
      for (const [outline, line] of [["rgba(0,0,0,.5)", picture ? 3.4 : 2.2], [style.getPropertyValue(colour), picture ? 1.8 : 1.2]]) {
        pen.strokeStyle = outline;
        pen.lineWidth = line * ratio;
        pen.setLineDash(outline.startsWith("rgba") ? [] : dash.map((x) => x * ratio));
        pen.beginPath();
        for (const [x, y, w, h] of shown(image, layer)) pen.rect(x * scale - ratio, y * scale - ratio, w * scale + 2 * ratio, h * scale + 2 * ratio);
        pen.stroke();
      }
    }
    if (layers.starts) {
      pen.setLineDash([]);
      pen.lineWidth = ratio;
      pen.strokeStyle = "rgba(0,0,0,.7)";
      pen.fillStyle = style.getPropertyValue("--query");
      for (const [x, y] of image.starts) {
        pen.beginPath();
        pen.arc(x * scale, y * scale, 2.2 * ratio, 0, 7);
        pen.fill();
        pen.stroke();
      }
    }
  }

  const number = (value) => value.toLocaleString("en", { maximumFractionDigits: 1 });
  const missed = (image) => shown(image, "misses").length;
  const alarms = (image) => shown(image, "alarms").length;
  const countError = (image) => (image.estimate === null ? 0 : Math.abs(image.estimate - image.objects));
  const ORDER = {
    misses: (a, b) => missed(b) - missed(a) || alarms(b) - alarms(a),
    alarms: (a, b) => alarms(b) - alarms(a) || missed(b) - missed(a),
    count: (a, b) => countError(b) - countError(a),
    objects: (a, b) => b.objects - a.objects,
    name: (a, b) => a.name.localeCompare(b.name, "en", { numeric: true }),
  };
  function text(image) {
    const parts = [`${number(missed(image))} missed`, `${number(alarms(image))} false`, `${number(image.objects)} objects`];
    if (image.estimate !== null) parts.push(`${number(image.estimate)} estimated`);
    if (image.queries !== null) parts.push(`${number(image.queries)} queries`);
    return parts;
  }

  const visible = new Set();
  const watcher = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      isIntersecting ? visible.add(target) : visible.delete(target);
      if (isIntersecting) draw(target.canvas, target.image);
    }
  }, { rootMargin: "300px" });
  const cards = data.images.map((image) => {
    const card = document.createElement("button");
    card.type = "button";
    card.className = "card";
    const frame = document.createElement("span");
    frame.className = "frame";
    frame.style.aspectRatio = `${image.width} / ${image.height}`;
    const picture = Object.assign(new Image(), { src: image.uri, alt: "", width: image.width, height: image.height, loading: "lazy", decoding: "async" });
    card.canvas = document.createElement("canvas");
    frame.append(picture, card.canvas);
    const name = document.createElement("b"), note = document.createElement("small");
    name.textContent = image.name;
    card.append(frame, name, note);
    card.image = image;
    card.picture = picture;
    card.note = note;
    card.addEventListener("click", () => open(card));
    return card;
  });
  let listed = [];

  function arrange() {
    const filtering = filter.class || filter.cause;
    listed = cards.filter(({ image }) => !filtering || missed(image) + alarms(image) > 0);
    listed.sort((a, b) => ORDER[$("sort").value](a.image, b.image));
    for (const card of listed) {
      const parts = text(card.image);
      card.note.textContent = `${parts.slice(0, 2).join(" · ")}\n${parts.slice(2).join(" · ")}`;
      card.setAttribute("aria-label", `${card.image.name}: ${parts.join(", ")}; enlarge`);
    }
    $("cards").replaceChildren(...listed);
    visible.clear();
    cards.forEach((card) => watcher.unobserve(card));
    listed.forEach((card) => watcher.observe(card));
    $("shown").textContent = `${listed.length} of ${cards.length} images`;
  }
  function redraw() {
    visible.forEach((card) => draw(card.canvas, card.image));
    if (large.open) enlarge();
  }

  const option = (value, name) => Object.assign(document.createElement("option"), { value, textContent: name });
  data.classes.forEach((name, label) => $("class").append(option(label, name)));
  const used = new Set(data.images.flatMap((image) => [...image.misses, ...image.alarms].map((box) => box[5])));
  for (const [title, names] of [["Misses", data.causes], ["False alarms", data.errors]]) {
    const group = Object.assign(document.createElement("optgroup"), { label: title });
    for (const [name, label] of Object.entries(names)) if (used.has(name)) group.append(option(name, label));
    if (group.children.length) $("cause").append(group);
  }
  $("sort").addEventListener("change", arrange);
  for (const name of ["class", "cause"]) $(name).addEventListener("change", (event) => { filter[name] = event.target.value; arrange(); redraw(); });
  const layerButtons = document.querySelector(".toggles"), toggles = [...layerButtons.children];
  for (const toggle of toggles) {
    const { layer } = toggle.dataset;
    toggle.hidden = (layer === "starts" || layer === "density") && !data.images.some((image) => layer === "starts" ? image.starts.length : image.density);
    toggle.addEventListener("click", () => {
      layers[layer] = !layers[layer];
      toggle.setAttribute("aria-pressed", layers[layer]);
      redraw();
    });
  }
  addEventListener("resize", redraw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

  // ---- one image, enlarged
  const large = $("large"), stage = large.querySelector(".stage"), canvas = stage.querySelector("canvas");
  let current = null, zoom = 1;
  function enlarge() {
    const { image, picture } = current;
    const fit = Math.min(stage.clientWidth / image.width, stage.clientHeight / image.height);
    canvas.style.width = `${image.width * fit * zoom}px`;
    canvas.style.height = `${image.height * fit * zoom}px`;
    draw(canvas, image, picture);
    $("large-name").textContent = image.name;
    $("large-text").textContent = text(image).join(" · ");
  }
  function open(card) {
    current = card;
    zoom = 1;
    if (!large.open) {
      large.showModal();
      large.insertBefore(layerButtons, $("large-text"));
    }
    card.picture.decode().catch(() => {}).finally(enlarge);
  }
  function go(step) {
    const place = listed.indexOf(current);
    open(listed[(place + step + listed.length) % listed.length]);
  }
  function magnify(factor) { zoom = Math.min(8, Math.max(1, zoom * factor)); enlarge(); }
  $("close").addEventListener("click", () => large.close());
  $("previous").addEventListener("click", () => go(-1));
  $("next").addEventListener("click", () => go(1));
  $("more").addEventListener("click", () => magnify(1.5));
  $("less").addEventListener("click", () => magnify(1 / 1.5));
  large.addEventListener("close", () => {
    $("shown").before(layerButtons);
    current.focus();
  });
  canvas.addEventListener("pointermove", (event) => {
    const { image } = current, area = canvas.getBoundingClientRect();
    const x = ((event.clientX - area.left) / area.width) * image.width, y = ((event.clientY - area.top) / area.height) * image.height;
    const under = ["misses", "alarms", "hits"].flatMap((layer) => layers[layer] ? shown(image, layer).map((box) => [layer, box]) : [])
      .filter(([, [bx, by, w, h]]) => x >= bx - 2 && y >= by - 2 && x <= bx + w + 2 && y <= by + h + 2)
      .sort(([, a], [, b]) => a[2] * a[3] - b[2] * b[3])[0];
    if (!under) { $("large-text").textContent = text(image).join(" · "); return; }
    const [layer, [, , w, h, label, kind, score]] = under;
    const what = { hits: "hit", misses: "missed", alarms: "false alarm" }[layer];
    const why = data.causes[kind] ?? data.errors[kind];
    $("large-text").textContent = [`${data.classes[label]}: ${what}`, why, `${number(w)} × ${number(h)} px`, score === null ? null : `score ${score.toFixed(2)}`].filter(Boolean).join(" · ");
  });
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT") return;
    const toggle = toggles.find((each) => each.dataset.key === event.key && !each.hidden);
    if (toggle) toggle.click();
    else if (!large.open) return;
    else if (event.key === "ArrowRight") go(1);
    else if (event.key === "ArrowLeft") go(-1);
    else if (event.key === "+" || event.key === "=") magnify(1.5);
    else if (event.key === "-") magnify(1 / 1.5);
    else return;
    event.preventDefault();
  });
  arrange();
})();
