// The look of a timeline, in the colours of ComfyUI's theme.

const STYLE = `
.vidrd-timeline { --line: var(--border-color, #4e4e4e); --back: var(--comfy-input-bg, #222); --text: var(--input-text, #ddd);
  --panel: var(--comfy-menu-bg, #353535); --soft: color-mix(in srgb, var(--text) 85%, var(--panel)); --accent: var(--p-primary-color, #3b8eea); --green: #3fa45b; --amber: #d08b1d;
  display: flex; flex-direction: column; gap: 8px; width: 100%; height: 100%; box-sizing: border-box; padding: 4px 8px 8px;
  border-radius: 8px; background: var(--panel); color: var(--text); font: 12px/1.4 system-ui, sans-serif; overflow: hidden; user-select: none; }
.vidrd-timeline * { box-sizing: border-box; }
.vidrd-timeline button, .vidrd-timeline select, .vidrd-timeline input, .vidrd-timeline textarea { font: inherit;
  color: var(--text); background: var(--back); border: 1px solid var(--line); border-radius: 5px; padding: 3px 8px; margin: 0; }
.vidrd-timeline button { cursor: pointer; white-space: nowrap; }
.vidrd-timeline button:hover:not(:disabled) { border-color: var(--accent); }
.vidrd-timeline button:disabled { opacity: .45; cursor: default; }
.vidrd-timeline button[aria-pressed=true] { border-color: var(--accent); color: var(--accent); }
.vidrd-timeline :focus-visible { outline: 2px solid var(--accent); outline-offset: 1px; }
.vidrd-bar { display: flex; gap: 8px; align-items: center; flex: none; min-height: 26px; }
.vidrd-bar .vidrd-sum { flex: 1; min-width: 0; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; color: var(--soft); }
.vidrd-message { flex: none; padding: 4px 8px; border-radius: 5px; border: 1px solid var(--amber); user-select: text; }
.vidrd-message:empty { display: none; }
.vidrd-strip { display: flex; gap: 8px; overflow-x: auto; overflow-y: hidden; flex: none; padding: 3px 3px 8px; scrollbar-width: thin; }
.vidrd-card { flex: none; width: 128px; border: 1px solid var(--line); border-radius: 7px; background: var(--back);
  overflow: hidden; cursor: pointer; content-visibility: auto; contain-intrinsic-size: 128px 166px; }
.vidrd-card[aria-selected=true] { border-color: var(--accent); box-shadow: 0 0 0 1px var(--accent); }
.vidrd-picture { position: relative; height: 92px; background: rgba(127, 127, 127, .14); }
.vidrd-picture img, .vidrd-picture video { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: contain; }
.vidrd-stale img { opacity: .4; filter: grayscale(.6); }
.vidrd-number { position: absolute; left: 4px; top: 4px; padding: 0 5px; border-radius: 4px; background: rgba(0, 0, 0, .6); color: #fff; }
.vidrd-lock { position: absolute; right: 4px; top: 4px; max-width: calc(100% - 32px); padding: 0 4px; font-size: 11px; border-radius: 4px; background: rgba(0, 0, 0, .6); color: #fff; }
.vidrd-state { position: absolute; left: 4px; bottom: 4px; padding: 0 6px; border-radius: 4px; color: #fff; background: rgba(0, 0, 0, .6); font-size: 11px; }
.vidrd-state::before { content: ""; display: inline-block; width: 7px; height: 7px; margin-right: 5px; border-radius: 50%; background: #9a9a9a; }
.vidrd-state[data-state=finished]::before { background: #5ed17e; }
.vidrd-state[data-state=changed]::before, .vidrd-state[data-state=lost]::before { background: #ffb648; }
.vidrd-state[data-state=running]::before { background: #59b0ff; animation: vidrd-pulse 1s infinite alternate; }
@keyframes vidrd-pulse { to { opacity: .25; } }
.vidrd-words { padding: 4px 6px 0; height: 38px; overflow: hidden; display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 2; }
.vidrd-words:empty::before { content: "no prompt"; color: var(--soft); font-style: italic; }
.vidrd-facts { display: flex; justify-content: space-between; padding: 2px 6px 5px; color: var(--soft); font-size: 11px; gap: 6px; }
.vidrd-facts span:first-child { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.vidrd-add { flex: none; width: 34px; font-size: 18px !important; padding: 0 !important; }
.vidrd-lower { display: flex; gap: 10px; flex: 1; min-height: 0; }
.vidrd-details { flex: 1.25; min-width: 0; display: flex; flex-direction: column; gap: 6px; overflow: auto; padding: 2px; }
.vidrd-details textarea { width: 100%; min-height: 54px; flex: none; resize: none; user-select: text; }
.vidrd-row { display: flex; gap: 6px; flex-wrap: wrap; align-items: center; }
.vidrd-row label { display: flex; gap: 5px; align-items: center; color: var(--soft); }
.vidrd-row input { user-select: text; }
.vidrd-seed { width: 150px; } .vidrd-frames { width: 64px; }
.vidrd-takes { display: flex; gap: 6px; flex-wrap: wrap; }
.vidrd-take { width: 104px; border: 1px solid var(--line); border-radius: 6px; overflow: hidden; background: var(--back); }
.vidrd-take[data-used=true] { border-color: var(--green); box-shadow: 0 0 0 1px var(--green); }
.vidrd-take .vidrd-picture { height: 70px; cursor: pointer; }
.vidrd-take .vidrd-tools { display: flex; }
.vidrd-take .vidrd-tools button { flex: 1; border-width: 1px 0 0; border-radius: 0; padding: 1px 0; font-size: 11px; background: none; }
.vidrd-take small { display: block; padding: 1px 5px; color: var(--soft); overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.vidrd-player { flex: 1; min-width: 0; display: flex; flex-direction: column; gap: 5px; }
.vidrd-screens { flex: 1; min-height: 60px; display: flex; gap: 6px; }
.vidrd-screens figure { flex: 1; min-width: 0; margin: 0; display: flex; flex-direction: column; }
.vidrd-screens video { flex: 1 1 0; height: 0; min-height: 0; width: 100%; object-fit: contain; background: #000; border-radius: 5px; cursor: pointer; }
.vidrd-screens figcaption { flex: none; color: var(--soft); overflow: hidden; text-overflow: ellipsis; white-space: nowrap; text-align: center; }
.vidrd-empty { flex: 1; display: grid; place-items: center; text-align: center; border: 1px dashed var(--line); border-radius: 6px; color: var(--soft); padding: 8px; }
.vidrd-track { position: relative; flex: none; height: 20px; border-radius: 5px; background: var(--back); border: 1px solid var(--line); cursor: pointer; overflow: hidden; }
.vidrd-done { position: absolute; left: 0; top: 0; bottom: 0; background: var(--accent); opacity: .35; pointer-events: none; }
.vidrd-timeline .vidrd-seam { position: absolute; top: 0; bottom: 0; width: 9px; margin-left: -5px; padding: 0; border: 0; border-radius: 0; background: none; }
.vidrd-seam::before { content: ""; position: absolute; left: 4px; top: 0; bottom: 0; width: 2px; background: var(--text); opacity: .75; }
.vidrd-seam:hover::before { background: var(--accent); opacity: 1; }
.vidrd-seam[data-shows=true]::before { background: var(--amber); opacity: 1; }
.vidrd-figures { flex: none; max-height: 84px; overflow: auto; user-select: text; border-collapse: collapse; }
.vidrd-figures td, .vidrd-figures th { padding: 0 8px 0 0; text-align: right; font-weight: normal; color: var(--soft); }
.vidrd-figures td { color: var(--text); }
`;

export function addStyle() {
  if (document.getElementById("vidrd-timeline-style")) return;
  const style = document.createElement("style");
  style.id = "vidrd-timeline-style";
  style.textContent = STYLE;
  document.head.append(style);
}

// An element with properties, attributes (those with a dash, role) and children.
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// Properties and attributes, of which only those are touched that change.
export function update(element, properties) {
  for (const [name, value] of Object.entries(properties)) {
    if (!name.includes("-")) {
      if (element[name] !== value) element[name] = value;
    } else if (element.getAttribute(name) !== value) element.setAttribute(name, value);
  }
}
