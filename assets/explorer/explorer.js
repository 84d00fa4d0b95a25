// The explorer page: what the reader does changes one scene; every change is drawn and shown to all networks.
(() => {
  "use strict";
  const page = (window.payattnExplorer ??= {});
  const STEP = 1 / 32; // of the picture, for one press of an arrow key
  const MAP = 128; // pixels of a drawn map
  const VIRIDIS = [[68, 1, 84], [72, 40, 120], [62, 74, 137], [49, 104, 142], [38, 130, 142], [31, 158, 137],
    [53, 183, 121], [109, 205, 89], [180, 222, 44], [253, 231, 37]];
  const root = document.getElementById("explorer");
  const part = (name) => root.querySelector(`[data-part="${name}"]`);
  const make = (tag, text = "", name = "") => Object.assign(document.createElement(tag), {textContent: text, className: name});
  const percent = (share) => `${(100 * share).toFixed(1)}\u00a0%`;

  let scene, picture, cards, given = null; // `given`: pictures shown as they are, by size, in place of the scene
  let pen = null, drawing = false, held = null; // the pen's place, whether the pointer draws, what it holds

  // ------------------------------------------------------------------------------------------- the picture

  const draw = (size) => given?.[size] ?? page.paint(scene, size);

  function image({pixels}, size, grey = false) {
    const data = new ImageData(size, size), n = size * size;
    for (let i = 0; i < n; i++) {
      const colour = [pixels[i], pixels[n + i], pixels[2 * n + i]];
      const light = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2];
      data.data.set(grey ? [light, light, light, 255] : [...colour, 255], 4 * i);
    }
    const canvas = make("canvas");
    canvas.width = canvas.height = size;
    canvas.getContext("2d").putImageData(data, 0, 0);
    return canvas;
  }

  function describe() {
    if (given) return "A picture from the test set.";
    const place = `at ${Math.round(100 * scene.x)} % from the left, ${Math.round(100 * scene.y)} % from the top`;
    const turn = Math.round((180 / Math.PI) * scene.turn), glyph = scene.glyph.length === 1 ? `letter ${scene.glyph}` : scene.glyph;
    const what = scene.glyph ? `The ${glyph}, ${place}, size ${Math.round(100 * scene.side)} %, turned ${turn} degrees` : "No glyph";
    const drawn = scene.pen.length ? `, with ${scene.pen.length} drawn lines` : "";
    return `${what}${drawn}, ${scene.photo ? "on a picture of your own" : `with ${scene.clutter} pieces of clutter`}.`;
  }

  function showScene() {
    const context = picture.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(image(draw(32), 32), 0, 0, picture.width, picture.height);
    if (pen) {
      const [x, y] = pen.at.map((value) => value * picture.width);
      context.lineWidth = 3;
      for (const [colour, grow] of [["#000", 0], ["#fff", 3]]) {
        context.strokeStyle = colour;
        context.strokeRect(x - 6 - grow, y - 6 - grow, 12 + 2 * grow, 12 + 2 * grow);
      }
    }
    picture.setAttribute("aria-label", `The picture. ${describe()}`);
    const shown = {x: 100 * scene.x, y: 100 * scene.y, side: 100 * scene.side, turn: (180 / Math.PI) * scene.turn, clutter: scene.clutter};
    for (const [name, value] of Object.entries(shown)) {
      part(name).value = Math.round(value);
      const text = `${Math.round(value)}${{turn: " degrees", clutter: ""}[name] ?? " %"}`;
      part(`${name}-said`).textContent = text;
      part(name).setAttribute("aria-valuetext", text);
    }
    part("glyph").value = scene.glyph;
    part("draw").setAttribute("aria-pressed", String(drawing));
    part("clear").disabled = !scene.pen.length;
    part("forget").disabled = !scene.photo;
    const strange = given ? [] : page.outside(scene);
    part("strange").textContent = strange.length
      ? `Outside of what the networks saw in training: ${strange.join("; ")}.` : "Like the pictures of their training.";
  }

  function change(values = {}) {
    given = null;
    Object.assign(scene, values);
    scene.x = Math.min(1, Math.max(0, scene.x));
    scene.y = Math.min(1, Math.max(0, scene.y));
    showScene();
    return answer();
  }

  // ------------------------------------------------------------------------------------------- the answers

  function card(network) {
    const box = make("section", "", "net"), heading = make("h3", network.title), lines = make("ol");
    heading.id = `explorer-${network.name.replace(/\W/g, "-")}`;
    box.setAttribute("aria-labelledby", heading.id);
    const bars = [0, 1, 2].map(() => {
      const line = make("li"), parts = [make("span", "", "who"), make("span", "", "bar"), make("span", "", "how")];
      parts[1].append(make("span"));
      line.append(...parts);
      lines.append(line);
      return parts;
    });
    const row = make("div", "", "maps"), maps = Object.entries(network.maps).map(([name, text]) => {
      const figure = make("figure"), canvas = make("canvas"), caption = make("figcaption", text);
      canvas.width = canvas.height = MAP;
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `${text}: not computed yet`);
      figure.append(canvas, caption);
      row.append(figure);
      return {name, text, canvas, caption, kind: network.kind};
    });
    const about = make("details");
    about.append(make("summary", `Maps: ${network.kind}`), make("p", `${network.about} It sees ${network.size} × ${network.size} `
      + `pixels, has ${network.parameters.toLocaleString("en")} parameters, and names ${percent(network.accuracy)} of the test `
      + `images right. Recipe: ${network.name}.`));
    box.append(heading, lines, about, row);
    part("networks").append(box);
    return {network, bars, maps};
  }

  const viridis = (share) => {
    const at = Math.min(VIRIDIS.length - 2, Math.floor(share * (VIRIDIS.length - 1))), rest = share * (VIRIDIS.length - 1) - at;
    return VIRIDIS[at].map((value, c) => value + (VIRIDIS[at + 1][c] - value) * rest);
  };

  function showMap({text, kind, canvas, caption}, {values, sides: [height, width]}, drawn, size) {
    const low = Math.min(...values), high = Math.max(...values), best = values.indexOf(high);
    const small = make("canvas"), data = new ImageData(width, height), context = canvas.getContext("2d");
    values.forEach((value, i) => data.data.set([...viridis(high > low ? (value - low) / (high - low) : 0.5), 255], 4 * i));
    [small.width, small.height] = [width, height];
    small.getContext("2d").putImageData(data, 0, 0);
    context.globalAlpha = 1;
    context.imageSmoothingEnabled = false;
    context.drawImage(image(drawn, size, true), 0, 0, MAP, MAP);
    context.globalAlpha = part("plain").checked ? 1 : 0.65;
    context.imageSmoothingEnabled = true;
    context.drawImage(small, 0, 0, MAP, MAP);
    context.globalAlpha = 1;
    const x = ((best % width) + 0.5) / width, y = (Math.floor(best / width) + 0.5) / height;
    for (const [colour, wide] of [["#000", 4], ["#fff", 2]]) {
      Object.assign(context, {strokeStyle: colour, lineWidth: wide});
      context.beginPath();
      context.arc(x * MAP, y * MAP, 7, 0, 2 * Math.PI);
      context.stroke();
    }
    const number = (value) => (Math.abs(value) >= 100 ? Math.round(value).toLocaleString("en") : value.toPrecision(2));
    const on = drawn.mask?.includes(1) ? `, ${touches(drawn.mask, size, x, y, width) ? "on" : "off"} the object` : "";
    caption.textContent = `${text}: ${number(low)} to ${number(high)}${on}`;
    canvas.setAttribute("aria-label", `${kind}, ${text}, over the picture: from ${number(low)} to ${number(high)}, largest at `
      + `${Math.round(100 * x)} % from the left and ${Math.round(100 * y)} % from the top${on}.`);
  }

  // Whether the cell with the map's largest value covers a pixel of the object.
  function touches(mask, size, x, y, width) {
    const half = size / width / 2, from = (share) => Math.max(0, Math.floor(share * size - half + 1e-6));
    const to = (share) => Math.min(size, Math.ceil(share * size + half - 1e-6));
    for (let i = from(y); i < to(y); i++) for (let j = from(x); j < to(x); j++) if (mask[i * size + j]) return true;
    return false;
  }

  function show({network, bars, maps}, {logits, maps: found}, drawn) {
    const largest = Math.max(...logits), odds = Array.from(logits, (value) => Math.exp(value - largest));
    const sum = odds.reduce((a, b) => a + b), order = odds.map((_, k) => k).sort((a, b) => odds[b] - odds[a]);
    bars.forEach(([who, bar, how], place) => {
      const share = odds[order[place]] / sum;
      who.textContent = window.payattnNetworks.classes[order[place]];
      bar.firstChild.style.width = `${100 * share}%`;
      how.textContent = percent(share);
    });
    maps.forEach((map, k) => showMap(map, found[k], drawn, network.size));
    page.answers[network.name] = {logits: Array.from(logits), maps: Object.fromEntries(found.map(({name, values}) => [name, Array.from(values)]))};
    return `${network.title}: ${window.payattnNetworks.classes[order[0]]}, ${percent(odds[order[0]] / sum)}`;
  }

  // One run at a time; what has changed meanwhile is answered once, with the last state.
  let asked = 0, running = null, said = 0;
  function answer() {
    asked += 1;
    if (cards) running ??= answerAll().finally(() => { running = null; });
    return running;
  }

  async function answerAll() {
    for (let mine = 0; mine !== asked;) {
      mine = asked;
      const start = performance.now(), lines = [], drawn = {};
      for (const each of cards) {
        const {network} = each, seen = (drawn[network.size] ??= draw(network.size));
        lines.push(show(each, await page.run(network, seen.pixels), seen));
      }
      page.milliseconds = performance.now() - start;
      clearTimeout(said); // read out when the reader pauses, not at every step of a slider
      said = setTimeout(() => tell([...lines, `Answered in ${Math.round(page.milliseconds)} milliseconds`]), 400);
    }
  }

  const tell = (lines) => part("said").replaceChildren(...lines.map((line) => make("span", `${line}. `)));

  // For tests: planar RGB uint8 pictures by size, shown as they are.
  page.answers = {};
  page.show = (pictures) => {
    given = Object.fromEntries(Object.entries(pictures).map(([size, pixels]) => [size, {pixels, mask: null}]));
    showScene();
    return answer();
  };
  page.scene = () => scene;
  page.change = change;

  // ------------------------------------------------------------------------------------------- what the reader does

  const placeOf = (event) => {
    const box = picture.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height].map((v) => Math.min(1, Math.max(0, v)));
  };

  function press(event) {
    const at = placeOf(event);
    picture.setPointerCapture(event.pointerId);
    held = drawing ? {line: [at]} : {from: [scene.x - at[0], scene.y - at[1]]};
    if (drawing) change({pen: [...scene.pen, held.line]});
  }

  function drag(event) {
    if (!held) return;
    const at = placeOf(event);
    if (held.line) held.line.push(at);
    change(held.line ? {} : {x: at[0] + held.from[0], y: at[1] + held.from[1]});
  }

  // With the keyboard: arrows move the glyph, or the pen, which the space bar sets down and lifts.
  function key(event) {
    const arrows = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
    const turns = {",": -1, ".": 1}, sizes = {"-": -1, "+": 1, "=": 1}, far = (event.shiftKey ? 4 : 1) * STEP;
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (drawing && event.key === " ") {
      pen = {at: pen?.at ?? [0.5, 0.5], line: pen?.line ? null : [pen?.at ?? [0.5, 0.5]]};
      change(pen.line ? {pen: [...scene.pen, pen.line]} : {});
      tell([pen.line ? "The pen is down: arrow keys draw" : "The pen is up"]);
    } else if (event.key in arrows && drawing) {
      pen ??= {at: [0.5, 0.5], line: null};
      pen.at = pen.at.map((value, axis) => Math.min(1, Math.max(0, value + far * arrows[event.key][axis])));
      pen.line?.push(pen.at);
      change();
    } else if (event.key in arrows) {
      change({x: scene.x + far * arrows[event.key][0], y: scene.y + far * arrows[event.key][1]});
    } else if (event.key in turns) change({turn: scene.turn + (turns[event.key] * 5 * Math.PI) / 180});
    else if (event.key in sizes) change({side: Math.min(0.9, Math.max(0.2, scene.side + 0.02 * sizes[event.key]))});
    else return;
    event.preventDefault();
  }

  async function open(file) {
    if (!file) return;
    try {
      change({photo: await createImageBitmap(file), glyph: "", clutter: 0, pen: []});
    } catch {
      tell([`${file.name} is not a picture that this browser can read`]);
    }
    part("file").value = "";
  }

  function listen() {
    const {style} = window.payattnNetworks, units = {x: 100, y: 100, side: 100, turn: 180 / Math.PI, clutter: 1};
    for (const [name, unit] of Object.entries(units))
      part(name).addEventListener("input", (event) => change({[name]: event.target.value / unit}));
    const again = () => Math.floor(Math.random() * 2 ** 24);
    const click = (name, action) => part(name).addEventListener("click", action);
    part("glyph").addEventListener("change", (event) => change({glyph: event.target.value}));
    part("plain").addEventListener("change", () => answer());
    part("file").addEventListener("change", (event) => open(event.target.files[0]));
    click("chance", () => change(page.chance(again())));
    click("ground", () => change({seed: again(), ...(scene.photo && {photo: null, clutter: style.pieces})}));
    click("clear", () => change({pen: []}));
    click("forget", () => change({photo: null, glyph: scene.glyph || "T", clutter: style.pieces}));
    click("draw", () => {
      drawing = !drawing;
      pen = null;
      if (drawing && !scene.pen.length) scene.glyph = "";
      change();
    });
    picture.addEventListener("pointerdown", press);
    picture.addEventListener("pointermove", drag);
    for (const end of ["pointerup", "pointercancel"]) picture.addEventListener(end, () => { held = null; });
    picture.addEventListener("keydown", key);
    picture.addEventListener("blur", () => { pen = null; showScene(); });
  }

  async function begin() {
    const [networks, ...runtime] = root.dataset.needs.split(" ");
    try {
      tell(["The networks are loading"]);
      await page.start([networks, ...runtime], () => {
        picture = part("picture");
        for (const name of ["", ...window.payattnNetworks.classes]) {
          const choice = make("option", name || "none");
          choice.value = name;
          part("glyph").append(choice);
        }
        scene = page.chance(7);
        listen();
        part("tool").hidden = false;
        showScene();
      });
      cards = window.payattnNetworks.networks.map(card);
      await answer();
      root.dataset.ready = "yes";
    } catch (error) {
      root.dataset.ready = "failed";
      tell([`The networks cannot run here: ${error.message}`]);
      throw error;
    }
  }

  // After the page is shown: what is loaded is larger than the rest of the page.
  const soon = () => (window.requestIdleCallback ?? setTimeout)(() => begin());
  if (document.readyState === "complete") soon();
  else window.addEventListener("load", soon);
})();
