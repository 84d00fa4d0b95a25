// Draws the pictures of the data set `glyphs` as payattn/data/strokes.py does: strokes on clutter and coloured noise.
// A scene is measured in sides of the picture, so that every network gets it drawn in the size it has learned with.
(() => {
  "use strict";
  const page = (window.payattnExplorer ??= {});
  const CELLS = 9; // of the noise, per side

  // Uniform numbers from a seed (mulberry32).
  page.random = (seed) => {
    let state = seed >>> 0;
    return () => {
      state = (state + 0x6d2b79f5) >>> 0;
      let t = Math.imul(state ^ (state >>> 15), state | 1);
      t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
      return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
    };
  };

  const between = ([low, high], share) => low + (high - low) * share;
  const baseOf = (draw) => [0, 1, 2].map(() => draw() * 160 + 48);

  // At least contrast[0] away from the base in every channel: distances on a circle.
  const colourOn = (base, draw, contrast) => base.map((value) => (value + 255 * between(contrast, draw())) % 255);

  // For every pixel of a side: its cell of the noise and how far it is towards the next one.
  function places(size) {
    return Array.from({length: size}, (_, pixel) => {
      const place = ((pixel + 0.5) / size) * (CELLS - 1);
      const left = Math.min(Math.floor(place), CELLS - 2), right = place - left;
      return [left, right * right * (3 - 2 * right)];
    });
  }

  // Noise of two scales: three cells a side, spread over nine, and nine.
  function noise(base, draw, size) {
    const up = [[4, 3, 2, 1, 0, 0, 0, 0, 0], [0, 1, 2, 3, 4, 3, 2, 1, 0], [0, 0, 0, 0, 0, 1, 2, 3, 4]];
    const coarse = Array.from({length: 27}, () => Math.floor(draw() * 128) - 64);
    const fine = Array.from({length: 243}, () => Math.floor(draw() * 64) - 32);
    const where = places(size), canvas = new Float32Array(3 * size * size);
    for (let c = 0; c < 3; c++) {
      const grid = new Float32Array(CELLS * CELLS);
      for (let i = 0; i < CELLS; i++)
        for (let j = 0; j < CELLS; j++) {
          let sum = fine[(c * CELLS + i) * CELLS + j];
          for (let a = 0; a < 3; a++)
            for (let b = 0; b < 3; b++) sum += (up[a][i] * up[b][j] * coarse[(c * 3 + a) * 3 + b]) / 16;
          grid[i * CELLS + j] = sum;
        }
      where.forEach(([i, v], y) => where.forEach(([j, u], x) => {
        const at = (di, dj) => grid[(i + di) * CELLS + j + dj];
        const value = (1 - v) * ((1 - u) * at(0, 0) + u * at(0, 1)) + v * ((1 - u) * at(1, 0) + u * at(1, 1));
        canvas[(c * size + y) * size + x] = base[c] + value;
      }));
    }
    return canvas;
  }

  // A photograph: the middle square, scaled.
  function photograph(source, size) {
    const small = document.createElement("canvas"), side = Math.min(source.width, source.height);
    small.width = small.height = size;
    const context = small.getContext("2d", {willReadFrequently: true});
    context.imageSmoothingQuality = "high";
    context.fillStyle = "#fff";
    context.fillRect(0, 0, size, size);
    const left = (source.width - side) / 2, top = (source.height - side) / 2;
    context.drawImage(source, left, top, side, side, 0, 0, size, size);
    const data = context.getImageData(0, 0, size, size).data, canvas = new Float32Array(3 * size * size);
    for (let i = 0; i < size * size; i++) for (let c = 0; c < 3; c++) canvas[c * size * size + i] = data[4 * i + c];
    return canvas;
  }

  // Strokes [x0, y0, x1, y1] of a glyph in pixels about the origin, and the radius of a ring.
  function framed(name, half, turn) {
    const {strokes, ring} = window.payattnNetworks, cos = Math.cos(turn) * half, sin = Math.sin(turn) * half;
    const turned = (x, y) => [cos * x - sin * y, sin * x + cos * y];
    const lines = strokes[name].map(([a, b, c, d]) => [...turned(a, b), ...turned(c, d)]);
    return {lines, ring: name === "ring" ? ring * half : 0};
  }

  const moved = (lines, x, y) => lines.map(([a, b, c, d]) => [a + x, b + y, c + x, d + y]);

  function distance(lines, ring, x, y) {
    let nearest = Infinity;
    for (const [a, b, c, d] of lines) {
      const dx = c - a, dy = d - b, length = dx * dx + dy * dy;
      const along = length ? Math.min(1, Math.max(0, ((x - a) * dx + (y - b) * dy) / length)) : 0;
      nearest = Math.min(nearest, Math.hypot(x - a - along * dx, y - b - along * dy));
    }
    return Math.abs(nearest - ring);
  }

  // Blend strokes in; a disc [x, y, r] cuts them, a mask remembers the pixels they cover.
  function blend(canvas, size, {lines, ring}, radius, colour, disc, mask) {
    const reach = radius + 0.5 + ring, xs = lines.flatMap((l) => [l[0], l[2]]), ys = lines.flatMap((l) => [l[1], l[3]]);
    const from = (values) => Math.max(0, Math.floor(Math.min(...values) - reach));
    const to = (values) => Math.min(size, Math.ceil(Math.max(...values) + reach));
    for (let i = from(ys); i < to(ys); i++)
      for (let j = from(xs); j < to(xs); j++) {
        const x = j + 0.5, y = i + 0.5;
        if (disc && (x - disc[0]) ** 2 + (y - disc[1]) ** 2 >= disc[2] ** 2) continue;
        const far = distance(lines, ring, x, y), alpha = Math.min(1, Math.max(0, radius + 0.5 - far));
        if (mask && far < radius) mask[i * size + j] = 1;
        for (let c = 0; c < 3 && alpha > 0; c++) {
          const at = (c * size + i) * size + j;
          canvas[at] += (colour[c] - canvas[at]) * alpha;
        }
      }
  }

  const thick = (share, size) => Math.max(0.75, share * size); // half the width of a stroke

  // A piece of any glyph, cut out by a small disc that sits on one of its strokes.
  function piece(canvas, size, base, draw) {
    const {classes, style} = window.payattnNetworks, name = classes[Math.floor(draw() * classes.length)];
    const half = (size / 2) * between(style.side, draw());
    const glyph = framed(name, half, style.turn * (2 * draw() - 1)), radius = thick(between(style.stroke, draw()), size);
    const x = draw() * size, y = draw() * size, cut = between(style.cut, draw()) * half;
    const [a, b, c, d] = glyph.lines[Math.floor(draw() * glyph.lines.length)], along = draw(), angle = 2 * Math.PI * along;
    const middle = [a + (c - a) * along + glyph.ring * Math.cos(angle), b + (d - b) * along + glyph.ring * Math.sin(angle)];
    glyph.lines = moved(glyph.lines, x - middle[0], y - middle[1]);
    blend(canvas, size, glyph, radius, colourOn(base, draw, style.contrast), [x, y, cut]);
  }

  // What the training images never have, in words.
  page.outside = (scene) => {
    const {style} = window.payattnNetworks, found = [];
    if (scene.photo) found.push("a photograph");
    if (scene.pen.length) found.push("a drawing");
    if (!scene.glyph && !scene.pen.length) found.push("no glyph");
    if (scene.clutter !== style.pieces && !scene.photo) found.push(`${scene.clutter} pieces of clutter instead of ${style.pieces}`);
    if (!scene.glyph) return found;
    if (scene.side < style.side[0] - 0.001 || scene.side > style.side[1] + 0.001) found.push("the size of the glyph");
    if (Math.abs(scene.turn) > style.turn + 0.001) found.push("a turn of more than 30 degrees");
    const {lines, ring} = framed(scene.glyph, scene.side / 2, scene.turn), room = ring + scene.stroke + 0.015;
    const all = moved(lines, scene.x, scene.y).flat();
    if (Math.min(...all) < room - 0.02 || Math.max(...all) > 1.02 - room) found.push("a glyph that leaves the picture");
    return found;
  };

  // A scene as training images are: everything by chance, the glyph whole inside the picture.
  page.chance = (seed) => {
    const {classes, style} = window.payattnNetworks, draw = page.random(seed);
    const glyph = classes[Math.floor(draw() * classes.length)], side = between(style.side, draw());
    const turn = style.turn * (2 * draw() - 1), stroke = between(style.stroke, draw());
    const {lines, ring} = framed(glyph, side / 2, turn), margin = ring + Math.max(stroke, 0.75 / 24) + 0.5 / 24;
    const [x, y] = [0, 1].map((axis) => {
      const ends = lines.flatMap((line) => [line[axis], line[axis + 2]]);
      const low = Math.min(...ends) - margin, high = Math.max(...ends) + margin;
      return -low + Math.max(0, 1 - (high - low)) * draw();
    });
    return {seed, glyph, x, y, side, turn, stroke, clutter: style.pieces, pen: [], photo: null};
  };

  // Pixels of a scene, planar RGB uint8, and the mask of what stands on it.
  page.paint = (scene, size) => {
    const {style} = window.payattnNetworks, draw = page.random(scene.seed + 1), mask = new Uint8Array(size * size);
    const base = baseOf(draw), colour = colourOn(base, draw, style.contrast);
    const canvas = scene.photo ? photograph(scene.photo, size) : noise(base, draw, size);
    for (let k = 0; k < scene.clutter; k++) piece(canvas, size, base, page.random(scene.seed * 64 + k + 2));
    const radius = thick(scene.stroke, size);
    if (scene.glyph) {
      const glyph = framed(scene.glyph, (size / 2) * scene.side, scene.turn);
      glyph.lines = moved(glyph.lines, scene.x * size, scene.y * size);
      blend(canvas, size, glyph, radius, colour, null, mask);
    }
    for (const points of scene.pen) {
      const lines = points.map((point, k) => [...(points[k - 1] ?? point), ...point].map((value) => value * size));
      blend(canvas, size, {lines, ring: 0}, radius, colour, null, mask);
    }
    return {pixels: Uint8Array.from(canvas, (value) => Math.min(255, Math.max(0, Math.floor(value + 0.5)))), mask};
  };
})();
