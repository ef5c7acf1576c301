// Helpers for the checks, installed once on the page as window.vidrdCheck.
(() => {
  const input = (node, name) => node.inputs.findIndex((slot) => slot.name === name);
  const widget = (node, name) => node.widgets.find((entry) => entry.name === name);

  function make(type, x, y, values = {}) {
    const node = LiteGraph.createNode(type);
    node.pos = [x, y];
    app.canvas.graph.add(node);
    for (const [name, value] of Object.entries(values)) widget(node, name).value = value;
    return node;
  }

  function wire(from, output, to, name) {
    from.connect(output, to, input(to, name));
  }

  // Load, two prompts, first clip, decode, preview: the smallest whole video.
  function firstClip(values = {}) {
    const load = make("VidRDLoadModel", 0, 100);
    const empty = make("VidRDEmptyLatent", 0, 350, { width: 64, height: 64, frames: 8 });
    const positive = make("CLIPTextEncode", 350, 60, { text: "a red circle moves right over a dark blue background" });
    const negative = make("CLIPTextEncode", 350, 350, { text: "" });
    const sample = make("VidRDSampleFirstClip", 820, 100, { control_after_generate: "fixed", seed: 7, cfg: 4, ...values });
    const decode = make("VAEDecode", 1150, 100);
    const preview = make("PreviewImage", 1350, 100);
    wire(load, 1, positive, "clip");
    wire(load, 1, negative, "clip");
    wire(load, 0, sample, "model");
    wire(positive, 0, sample, "positive");
    wire(negative, 0, sample, "negative");
    wire(empty, 0, sample, "latent");
    wire(sample, 0, decode, "samples");
    wire(load, 2, decode, "vae");
    wire(decode, 0, preview, "images");
    app.canvas.emitBeforeChange(); // what was built by script becomes a state that undo can come back to
    app.canvas.emitAfterChange();
    return [sample, decode, preview].map((node) => String(node.id));
  }

  const loaded = (y) => {
    const unet = make("UNETLoader", -400, y);
    const shift = make("ModelSamplingSD3", 0, y, { shift: 8 });
    wire(unet, 0, shift, "model");
    return shift;
  };

  // A sampler of ComfyUI with what it needs, and the output that holds its MODEL wire: itself or its guider.
  function sampler(kind, x, y, values = {}) {
    const node = make(kind, x, y, values);
    if (kind !== "SamplerCustomAdvanced") return { node, taker: node };
    const taker = make("BasicGuider", x, y + 300);
    wire(taker, 0, node, "guider");
    const noise = make("RandomNoise", x, y + 500, { noise_seed: 7, control_after_generate: "fixed" });
    wire(noise, 0, node, "noise");
    return { node, taker };
  }

  // A whole video of one clip by ComfyUI's own samplers, one or several in a row: ids of the samplers and the decoder.
  function stockClip(kinds, latent = "EmptyHunyuanLatentVideo", models = 1) {
    const shifts = Array.from({ length: models }, (_, number) => loaded(100 + 600 * number));
    const positive = make("CLIPTextEncode", 350, 60, { text: "a fox" });
    let before = make(latent, 350, 350);
    const samplers = kinds.map(([kind, values], number) => {
      const { node, taker } = sampler(kind, 900, 100 + 500 * number, values);
      wire(shifts[Math.min(number, models - 1)], 0, taker, "model");
      for (const [slot, { name }] of taker.inputs.entries()) {
        if (["positive", "negative", "conditioning"].includes(name)) positive.connect(0, taker, slot);
      }
      wire(before, 0, node, "latent_image");
      before = node;
      return node;
    });
    const decode = make("VAEDecode", 1300, 100);
    wire(before, 0, decode, "samples");
    app.canvas.emitBeforeChange();
    app.canvas.emitAfterChange();
    return [...samplers, decode].map((node) => String(node.id));
  }

  const byId = (id) => app.canvas.graph.nodes.find((node) => String(node.id) === String(id));

  // The entries of a node's menu, as a right click would show them.
  function entries(id) {
    return app.canvas.getNodeMenuOptions(byId(id)).filter((entry) => entry?.content === "Add Reuse and Diffuse");
  }

  // Takes the entry; gives the ids of the nodes that are new.
  function take(id) {
    const before = new Set(app.canvas.graph.nodes);
    entries(id)[0].callback();
    return app.canvas.graph.nodes.filter((node) => !before.has(node)).map((node) => String(node.id));
  }

  // Everything about a node that the checks ask for: type, box, values, and wires as {input: "origin:output"}.
  function describe(id) {
    const node = byId(id);
    const wires = {};
    for (const [slot, { name }] of (node.inputs ?? []).entries()) {
      const link = node.getInputLink(slot);
      if (link) wires[name] = `${link.origin_id}:${link.origin_slot}`;
    }
    const values = Object.fromEntries((node.widgets ?? []).map((entry) => [entry.name, entry.value]));
    return { type: node.type, box: [...node.pos, ...node.size], wires, values };
  }

  const ids = () => app.canvas.graph.nodes.map((node) => String(node.id));

  // Fits the graph into the window, for the picture.
  function fit() {
    const boxes = app.canvas.graph.nodes.map((node) => [...node.pos, ...node.size]);
    const [left, top] = [0, 1].map((i) => Math.min(...boxes.map((box) => box[i])));
    const [right, bottom] = [0, 1].map((i) => Math.max(...boxes.map((box) => box[i] + box[i + 2])));
    const { ds } = app.canvas;
    ds.scale = Math.min(1400 / (right - left), 800 / (bottom - top), 1);
    ds.offset[0] = 100 / ds.scale - left;
    ds.offset[1] = 130 / ds.scale - top;
    app.canvas.setDirty(true, true);
  }

  // The Timeline node of the graph that is open, and the element of its strip.
  const timeline = () => app.canvas.graph.nodes.find((node) => node.type === "VidRDTimeline");
  const strip = () => widget(timeline(), "strip").element;

  const toasts = () => [...document.querySelectorAll(".p-toast-detail, [data-testid=toast]")].map((element) => element.textContent);

  window.vidrdCheck = { make, wire, firstClip, stockClip, toasts, entries, take, describe, ids, fit, timeline, strip };
})();
