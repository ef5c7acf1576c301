// Lets a finished clip play at once, over and over, inside "Preview VidRD Clip"; the frontend would wait for a click.

import { app } from "../../../scripts/app.js";
import { chain, widgetOf } from "./graph.js";

const PREVIEW = "VidRDPreviewClip";
const WIDGET = "video-preview"; // in which frontends with drawn nodes show a video
const INTERVAL = 250; // milliseconds between two looks for the video element
const MAX_LOOKS = 120; // then it gives up

const started = new WeakSet();

// The node's videos, in a widget or, where nodes are elements of the page, among those.
function videosOf(node) {
  const inWidget = widgetOf(node, WIDGET)?.element?.querySelectorAll?.("video") ?? [];
  const inPage = document.querySelectorAll(`[data-node-id="${CSS.escape(String(node.id))}"] video`);
  return [...inWidget, ...inPage];
}

// The video element comes a while after the result, when the node is drawn.
function playWhenThere(node, looks = MAX_LOOKS) {
  const fresh = videosOf(node).filter((video) => !started.has(video));
  for (const video of fresh) {
    started.add(video);
    Object.assign(video, { muted: true, loop: true, autoplay: true });
    video.play().catch((reason) => console.debug(`VidRD: the preview waits for a click (${reason.name})`));
  }
  if (!fresh.length && looks > 0 && node.graph) setTimeout(() => playWhenThere(node, looks - 1), INTERVAL);
}

app.registerExtension({
  name: "VidRD.PlayPreviews",

  beforeRegisterNodeDef(nodeType, nodeData) {
    if (nodeData.name !== PREVIEW) return;
    chain(nodeType.prototype, "onExecuted", function () {
      playWhenThere(this);
    });
  },
});
