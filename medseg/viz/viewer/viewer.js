"use strict";
// The viewer's page: loads the volumes that the page holds into niivue and connects its controls.

(async function () {
  const element = (id) => document.getElementById(id);
  const say = (text) => {
    element("message").textContent = text;
    element("message").hidden = !text;
  };

  function bytesOf(base64) {
    const text = atob(base64);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    return bytes;
  }

  async function unpacked(bytes) {
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  async function loadNiivue() {
    const script = document.createElement("script");
    script.textContent = new TextDecoder().decode(await unpacked(bytesOf(element("niivue").textContent)));
    document.head.append(script); // runs at once; the page's policy admits this text only
    if (!window.niivue) throw new Error("the viewer's code was refused");
  }

  say("Loading …");
  // overlay: the label map that niivue blends with the image. niivue dims colour images under label maps, so that labels are
  // painted into these: colours are the image's own, painted the class numbers on its grid.
  const state = { content: null, hidden: new Set(), overlay: null, colours: null, painted: null };
  let nv;

  const DRAG = { windowing: 9, crosshair: 8, pan: 3 };
  const CROSSHAIR = 0.4; // of the width of a pane, in percent
  const OPTIONS = {
    backColor: [0, 0, 0, 1],
    crosshairColor: [1, 0.85, 0.2, 0.8],
    crosshairWidth: CROSSHAIR,
    crosshairWidthUnit: "percent",
    fontColor: [1, 0.85, 0.2, 1],
    show3Dcrosshair: true,
    isRadiologicalConvention: true,
    isCornerOrientationText: false,
    isForceMouseClickToVoxelCenters: true,
    isNearestInterpolation: true,
    atlasOutline: 0.8, // opacity of the outlines of labels
    multiplanarShowRender: 1, // always: the fourth pane
    multiplanarLayout: 2, // a grid
    multiplanarPadPixels: 4,
    dragAndDropEnabled: false,
    mouseEventConfig: {
      leftButton: { primary: DRAG.crosshair, withShift: DRAG.pan, withCtrl: DRAG.pan },
      rightButton: DRAG.windowing,
      centerButton: DRAG.pan,
    },
    logLevel: "error",
    loadingText: "",
  };

  // The scale of colours of maps of numbers: places from 0 to 1, red, green, blue and opacity. Small numbers are transparent.
  const SCALE = [
    [0, 0, 0, 4, 0],
    [0.25, 120, 28, 109, 120],
    [0.75, 237, 105, 37, 220],
    [1, 252, 255, 164, 255],
  ];

  function scaleColour(share) {
    const next = Math.max(1, SCALE.findIndex(([place]) => place >= share));
    const [one, two] = [SCALE[next - 1], SCALE[next]];
    const part = (share - one[0]) / (two[0] - one[0]);
    return one.slice(1).map((value, channel) => value + part * (two[channel + 1] - value));
  }

  function addScale() {
    const columns = [0, 1, 2, 3, 4].map((column) => SCALE.map((row) => row[column]));
    const [I, R, G, B, A] = columns;
    nv.addColormap("scale", { R, G, B, A, I: I.map((place) => Math.round(255 * place)) });
  }

  const options = (select, names) => {
    select.replaceChildren(...names.map((name, index) => new Option(name, index)));
    select.parentElement.hidden = names.length < 2;
  };
  const number = (value) => Number(value.toPrecision(6)).toString();

  // The colours of the map that is shown: class numbers from 1, hidden labels transparent.
  function colours() {
    const { content } = state;
    const rows = shownMap().agreement ? content.agreement : content.labels;
    const table = { R: [0], G: [0], B: [0], A: [0], I: [0], labels: [""] };
    rows.forEach((row, index) => {
      ["R", "G", "B"].forEach((key, channel) => table[key].push(row.colour[channel]));
      table.A.push(state.hidden.has(row.name) ? 0 : 255);
      table.I.push(index + 1);
      table.labels.push(""); // niivue would draw them; the list at the side shows them
    });
    return table;
  }

  const maps = () => {
    const { content } = state;
    const found = content.maps.map((map, index) => ({ name: map.name, data: map.data, index }));
    if (content.difference) found.push({ name: "difference", data: content.difference, agreement: true });
    return found.concat(content.overlays.map((one) => ({ ...one, numbers: true })));
  };
  const shownMap = () => maps()[Number(element("map").value)] || { data: null };

  async function volumeOf(data, settings) {
    const url = await unpacked(bytesOf(data));
    return niivue.NVImage.loadFromUrl({ url, name: "volume.nii", ...settings });
  }

  // Outlines have their own opacity. With outlines alone the inside is almost invisible; niivue omits maps of opacity 0.
  const outlined = () => element("outline").checked && !shownMap().numbers;
  const opacity = () => (outlined() ? 0.001 : Number(element("opacity").value));

  async function showMap() {
    if (state.overlay) nv.removeVolume(state.overlay);
    state.overlay = state.painted = null;
    const map = shownMap();
    if (map.data) {
      const scale = map.numbers ? { colormap: "scale", cal_min: map.low, cal_max: map.high } : {};
      const volume = await volumeOf(map.data, { colorbarVisible: false, ...scale });
      volume.opacity = opacity();
      state.numberOf = (raw) => raw * volume.hdr.scl_slope + volume.hdr.scl_inter;
      if (state.colours) {
        state.painted = volume.img;
      } else {
        nv.addVolume(volume);
        state.overlay = volume;
      }
    }
    document.querySelectorAll(".outlines").forEach((one) => { one.hidden = !state.content.maps.length || map.numbers; });
    element("list-name").textContent = map.numbers ? map.name : "Labels";
    restyle();
    listLabels();
    nv.createOnLocationChange(); // reports the value of the new map
  }

  function recolour() {
    if (state.overlay && !shownMap().numbers) state.overlay.setColormapLabel(colours());
    if (state.painted) paint();
    nv.updateGLVolume();
  }

  function restyle() {
    element("opacity").disabled = outlined();
    if (state.overlay) state.overlay.opacity = opacity();
    recolour();
  }

  function paint() {
    const map = shownMap();
    const pixels = map.numbers ? paintedNumbers(map) : paintedLabels();
    nv.volumes[0].img = pixels;
  }

  function paintedNumbers({ low, high }) {
    const pixels = state.colours.slice();
    const table = Array.from({ length: 256 }, (_, place) => scaleColour(place / 255));
    state.painted.forEach((raw, place) => {
      const share = (state.numberOf(raw) - low) / (high - low || 1);
      const colour = table[Math.round(255 * Math.min(Math.max(share, 0), 1))];
      const part = (opacity() * colour[3]) / 255;
      for (let channel = 0; channel < 3; channel++) {
        const at = 3 * place + channel;
        pixels[at] = (1 - part) * pixels[at] + part * colour[channel];
      }
    });
    return pixels;
  }

  function paintedLabels() {
    const { R, G, B, A } = colours();
    const outline = outlined();
    const pixels = state.colours.slice();
    const labels = state.painted;
    const width = nv.volumes[0].hdr.dims[1];
    const inside = (place) => [place - 1, place + 1, place - width, place + width].every((near) => labels[near] === labels[place]);
    for (let place = 0; place < labels.length; place++) {
      const label = labels[place];
      if (!label || !A[label]) continue;
      const edge = !inside(place);
      if (outline && !edge) continue;
      const share = edge ? Math.max(opacity(), OPTIONS.atlasOutline) : opacity();
      [R, G, B].forEach((table, channel) => {
        const at = 3 * place + channel;
        pixels[at] = (1 - share) * pixels[at] + share * table[label];
      });
    }
    return pixels;
  }

  function listScale({ low, high }) {
    const item = document.createElement("li");
    const [from, to, bar] = [0, 1, 2].map(() => document.createElement("span"));
    [from.textContent, to.textContent] = [number(low), number(high)];
    bar.className = "scale";
    const stops = SCALE.map(([place, ...rgba]) => `rgb(${rgba.slice(0, 3).join(",")}) ${100 * place}%`);
    bar.style.background = `linear-gradient(to right, ${stops.join(",")})`;
    item.append(from, bar, to);
    element("labels").replaceChildren(item);
  }

  function listLabels() {
    const map = shownMap();
    if (map.numbers) {
      listScale(map);
      return;
    }
    const rows = map.agreement ? state.content.agreement : state.content.labels;
    element("labels").replaceChildren(...rows.map((row) => {
      const item = document.createElement("li");
      const box = document.createElement("input");
      box.type = "checkbox";
      box.checked = !state.hidden.has(row.name);
      box.setAttribute("aria-label", row.name);
      box.addEventListener("change", () => {
        if (box.checked) state.hidden.delete(row.name);
        else state.hidden.add(row.name);
        recolour();
      });
      const swatch = document.createElement("span");
      swatch.className = "swatch";
      swatch.style.background = `rgb(${row.colour.join(",")})`;
      const name = document.createElement("span");
      name.className = "name";
      name.textContent = row.name.replaceAll("_", "_\u200b"); // where a long name may break
      item.append(box, swatch, name);
      if (row.ml && !state.content.inPixels) {
        const ml = document.createElement("span");
        ml.className = "ml";
        ml.textContent = `${number(row.ml[map.name] || 0).slice(0, 7)} ml`;
        item.append(ml);
      }
      return item;
    }));
  }

  function setRange(low, high) {
    const image = nv.volumes[0];
    if (!(high > low)) return;
    [image.cal_min, image.cal_max] = [low, high];
    nv.updateGLVolume();
    showRange();
  }

  function showRange() {
    element("low").value = number(nv.volumes[0].cal_min);
    element("high").value = number(nv.volumes[0].cal_max);
  }

  async function showChannel() {
    const channel = state.content.channels[Number(element("channel").value)];
    const place = nv.volumes.length ? nv.scene.crosshairPos.slice() : null;
    while (nv.volumes.length) nv.removeVolume(nv.volumes[0]);
    Object.assign(state, { overlay: null, colours: null, painted: null });
    const [first] = channel.windows;
    const settings = first ? { cal_min: first.low, cal_max: first.high, colormap: "gray" } : {};
    nv.addVolume(await volumeOf(channel.data, { ...settings, colorbarVisible: false }));
    if (channel.colour) state.colours = nv.volumes[0].img.slice();
    options(element("window"), channel.windows.map((one) => one.name));
    element("window-label").hidden = channel.windows.length < 2;
    document.querySelectorAll(".range").forEach((one) => { one.hidden = channel.colour; });
    if (!channel.colour) showRange();
    if (place) nv.scene.crosshairPos = place;
    await showMap();
  }

  async function showCase() {
    const content = JSON.parse(element(`case-${element("case").value || 0}`).textContent);
    while (nv.volumes.length) nv.removeVolume(nv.volumes[0]);
    Object.assign(state, { content, hidden: new Set() });
    options(element("channel"), content.channels.map((one) => one.name));
    options(element("map"), maps().map((one) => one.name));
    document.querySelectorAll(".maps").forEach((one) => { one.hidden = !maps().length; });
    document.querySelectorAll(".several").forEach((one) => { one.hidden = maps().length < 2; });
    document.querySelectorAll(".body").forEach((one) => { one.hidden = content.inPixels; });
    element("voxel-name").textContent = content.inPixels ? "pixel" : "voxel";
    nv.opts.isOrientationTextVisible = !content.inPixels;
    document.querySelectorAll(".solid").forEach((one) => { one.hidden = content.flat; });
    element("view").parentElement.hidden = content.flat;
    element("note").textContent = [content.note, ...content.notes].filter(Boolean).join(" ");
    await showChannel();
    nv.setSliceType(content.flat ? flatPlane() : Number(element("view").value));
    nv.scene.crosshairPos = nv.mm2frac(content.focus);
    nv.updateGLVolume();
    nv.createOnLocationChange();
  }

  // The plane of an image that is a single slice: the axis with one voxel, in the order right, anterior, superior.
  const flatPlane = () => [2, 1, 0][nv.volumes[0].dimsRAS.slice(1, 4).indexOf(1)];

  let last = null;
  function report(location) {
    last = location || last;
    if (!last || !state.content) return;
    const { content } = state;
    const mm = Array.from(last.mm).slice(0, 3);
    const sides = ["RL", "AP", "SI"].map((pair, axis) => pair[mm[axis] < 0 ? 1 : 0]);
    element("position").textContent = mm.map((x, axis) => `${sides[axis]} ${Math.abs(x).toFixed(1)}`).join("  ") + " mm";
    element("position").dataset.mm = mm.join(" ");
    const voxel = voxelAt(mm);
    element("voxel").textContent = (content.exact ? "" : "about ") + voxel.slice(0, content.inPixels ? 2 : 3).join(", ");
    const [image, overlay] = last.values;
    element("value").textContent = image ? valueText(image, voxel) : "–";
    const map = shownMap();
    const rows = map.agreement ? content.agreement : content.labels;
    const found = state.painted ? state.painted[placeOf(voxel)] : overlay && overlay.value;
    if (map.numbers) {
      element("map-name").textContent = map.name;
      const shown = state.painted ? state.numberOf(found) : found;
      element("label").textContent = shown === undefined ? "–" : Number(shown.toPrecision(3)).toString();
      return;
    }
    const label = Math.round(found);
    const named = map.data ? rows[label - 1] || { name: "background" } : { name: "" };
    element("map-name").textContent = named.name && map.name;
    element("label").textContent = named.name;
  }

  const voxelAt = (mm) => state.content.toVoxel.slice(0, 3)
    .map((row) => Math.round(row[0] * mm[0] + row[1] * mm[1] + row[2] * mm[2] + row[3]));

  // The place of a voxel of the file in the array that is shown, which may be reduced.
  function placeOf(voxel) {
    const { factors } = state.content;
    const [, nx, ny] = nv.volumes[0].hdr.dims;
    const [x, y, z] = voxel.map((v, axis) => Math.floor(v / factors[axis]));
    return x + nx * (y + ny * z);
  }

  function valueText(image, voxel) {
    if (!state.colours) return number(image.value);
    const place = 3 * placeOf(voxel);
    return Array.from(state.colours.slice(place, place + 3)).join(", ");
  }

  function connect() {
    const on = (id, event, action) => element(id).addEventListener(event, action);
    on("case", "change", showCase);
    on("channel", "change", showChannel);
    on("map", "change", showMap);
    on("view", "change", () => nv.setSliceType(Number(element("view").value)));
    on("window", "change", () => {
      const chosen = state.content.channels[Number(element("channel").value)].windows[Number(element("window").value)];
      setRange(chosen.low, chosen.high);
    });
    for (const id of ["low", "high"]) on(id, "change", () => setRange(Number(element("low").value), Number(element("high").value)));
    on("opacity", "input", restyle);
    on("outline", "change", restyle);
    on("smooth", "change", () => nv.setInterpolation(!element("smooth").checked));
    on("crosshair", "change", () => {
      nv.opts.crosshairWidth = element("crosshair").checked ? CROSSHAIR : 0;
      nv.opts.show3Dcrosshair = element("crosshair").checked;
      nv.drawScene();
    });
    on("cut", "change", () => nv.setClipPlane(element("cut").checked ? [0.02, 180, 10] : [2, 0, 0]));
    on("radiological", "change", () => nv.setRadiologicalConvention(element("radiological").checked));
    on("all", "click", () => { state.hidden.clear(); listLabels(); recolour(); });
    on("none", "click", () => {
      (shownMap().agreement ? state.content.agreement : state.content.labels).forEach((row) => state.hidden.add(row.name));
      listLabels();
      recolour();
    });
    document.addEventListener("keydown", (event) => {
      const select = element("map");
      if (event.key.toLowerCase() !== "f" || select.options.length < 2) return;
      select.selectedIndex = (select.selectedIndex + 1) % select.options.length;
      showMap();
    });
    element("canvas").addEventListener("contextmenu", (event) => event.preventDefault());
  }

  try {
    await loadNiivue();
    nv = new niivue.Niivue(OPTIONS);
    nv.onLocationChange = report;
    nv.onIntensityChange = showRange;
    await nv.attachToCanvas(element("canvas"));
    addScale();
    connect();
    await showCase();
    say("");
    document.body.dataset.ready = "true";
    if (window.parent !== window) window.parent.postMessage("medseg-viewer-ready", "*");
  } catch (error) {
    say(`The interactive viewer could not start: ${error.message}`);
    document.body.dataset.ready = "failed";
  }
})();
