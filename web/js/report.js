// What a node says of its work stays on the node: a verdict, warnings, and folded details (see nodes/report.py).
// It is kept in node.properties, so it is saved with the workflow and there again after a reload.
import { app } from '../../../scripts/app.js';
import { api } from '../../../scripts/api.js';

const KEY = 'twinflow';
const ROOM = 96; // pixels; longer texts scroll
const BELOW = 40; // a title, and air, between a node that grew and its neighbour
const STYLE = `
.twinflow-report { box-sizing: border-box; height: 100%; min-height: ${ROOM}px; overflow-y: auto; padding: 4px 8px; border-radius: 6px;
  background: var(--comfy-input-bg, #222); color: var(--input-text, #ddd); font: 12px/1.35 sans-serif; user-select: text; overflow-wrap: anywhere; }
.twinflow-report b { font-weight: 600; }
.twinflow-report p { margin: 2px 0; color: #f5b942; }
.twinflow-report i, .twinflow-report summary { color: var(--descrip-text, #999); }
.twinflow-report pre { margin: 0; font: inherit; white-space: pre-wrap; }`;

const reports = (node) => node.comfyClass?.startsWith('TwinFlow') && node.outputs?.some((output) => output.name === 'report');
const waiting = new Set(); // nodes that run and have not warned yet

function find(id) {
  let graph = app.rootGraph ?? app.graph;
  let node = null;
  for (const part of String(id).split(':')) { // of a subgraph: 5:3
    node = graph?.getNodeById(part);
    graph = node?.subgraph;
  }
  return node;
}

function line(tag, text) {
  const element = document.createElement(tag);
  element.textContent = text;
  return element;
}

function content({ verdict, warnings, details } = {}) {
  const parts = [verdict && line('b', verdict), ...(warnings ?? []).map((text) => line('p', `⚠ ${text}`))].filter(Boolean);
  if (!parts.length) return [line('i', 'The report appears here after a run.')];
  if (details?.length) {
    const folded = document.createElement('details');
    folded.append(line('summary', 'Details'), line('pre', details.join('\n')));
    parts.push(folded);
  }
  return parts;
}

function panel(node) {
  const there = node.widgets?.find((widget) => widget.name === KEY);
  if (there) return there;
  const element = document.createElement('div');
  element.className = 'twinflow-report';
  const most = reports(node) ? undefined : ROOM;
  if (most) element.style.maxHeight = `${most}px`;
  element.addEventListener('wheel', (event) => element.scrollHeight > element.clientHeight && event.stopPropagation());
  const tall = node.size[1];
  const widget = node.addDOMWidget(KEY, KEY, element, { serialize: false, hideOnZoom: false, getMinHeight: () => ROOM, getMaxHeight: () => most });
  widget.serialize = false;
  const grown = window.LiteGraph?.vueNodesMode ? tall + ROOM + 8 : Math.max(tall, node.computeSize()[1]);
  node.setSize([node.size[0], grown]);
  if (grown > tall) pushDown(node, grown - tall);
  return widget;
}

function makeRoom(node, tall) {
  if (node.size[1] > tall) pushDown(node, node.size[1] - tall);
}

// Neighbours below a node that grew make room for it.
function pushDown(node, by) {
  const [left, top] = node.pos;
  const [width, height] = node.size;
  for (const other of node.graph?.nodes ?? []) {
    const beside = other.pos[0] >= left + width || other.pos[0] + other.size[0] <= left;
    const over = top + height + BELOW - other.pos[1];
    if (other === node || beside || over <= 0 || other.pos[1] < top + height - by) continue;
    other.pos = [other.pos[0], other.pos[1] + over];
    pushDown(other, over);
  }
}

function show(node) {
  const said = node.properties?.[KEY];
  const widget = node.widgets?.find((w) => w.name === KEY);
  if (!said && !reports(node)) {
    if (!widget) return;
    node.removeWidget?.(widget);
    node.setSize([node.size[0], Math.max(node.size[1] - ROOM, node.computeSize()[1])]);
  } else {
    (widget ?? panel(node)).element.replaceChildren(...content(said));
  }
  node.setDirtyCanvas?.(true, true);
}

function say(node, said) {
  if (JSON.stringify(node.properties?.[KEY]) === JSON.stringify(said)) return;
  node.properties ??= {};
  if (said) node.properties[KEY] = said;
  else delete node.properties[KEY];
  show(node);
  const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
  (tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker); // into the draft that a reload opens
}

function settle(running) {
  for (const id of waiting) {
    if (id === running) continue;
    waiting.delete(id);
    const node = find(id);
    const said = node?.properties?.[KEY];
    if (said?.warnings?.length) say(node, said.verdict ? { ...said, warnings: [] } : undefined);
  }
}

// A node that ComfyUI does not run again says nothing; what it said last of the same inputs is in the history.
async function recall(ids) {
  const nodes = ids.map((id) => [id, find(id)]).filter(([, node]) => node && reports(node));
  if (!nodes.length) return;
  const inputs = (prompt, id) => JSON.stringify([prompt?.[id]?.class_type, prompt?.[id]?.inputs]);
  const { output: now } = await app.graphToPrompt();
  const past = Object.values(await (await api.fetchApi('/history?max_items=64')).json()).reverse();
  for (const [id, node] of nodes) {
    const job = past.find(({ prompt, outputs }) => outputs[id]?.[KEY] && inputs(prompt[2], id) === inputs(now, id));
    if (job) say(node, job.outputs[id][KEY][0]);
  }
}

app.registerExtension({
  name: 'TwinFlow.Report',
  setup() {
    document.head.append(line('style', STYLE));
    api.addEventListener('executing', ({ detail }) => {
      const id = detail == null ? null : String(detail.node ?? detail);
      settle(id);
      if (id !== null) waiting.add(id);
    });
    api.addEventListener('execution_cached', ({ detail }) => recall(detail.nodes ?? []));
    api.addEventListener('execution_success', () => settle(null));
    api.addEventListener('execution_error', () => waiting.clear());
    api.addEventListener('execution_interrupted', () => waiting.clear());
    api.addEventListener('twinflow.warning', ({ detail }) => {
      const node = find(detail.node);
      if (!node) return;
      const said = node.properties?.[KEY] ?? {};
      const before = waiting.delete(String(detail.node)) ? [] : (said.warnings ?? []);
      say(node, { ...said, warnings: [...before, detail.warning] });
    });
    api.addEventListener('executed', ({ detail }) => {
      const [said] = detail.output?.[KEY] ?? [];
      const node = said && find(detail.display_node ?? detail.node);
      if (!node || !reports(node)) return;
      waiting.delete(String(detail.display_node ?? detail.node));
      say(node, said);
    });
  },
  nodeCreated(node) {
    if (!reports(node)) return;
    panel(node);
    show(node);
  },
  loadedGraphNode(node) {
    if (node.properties?.[KEY] || reports(node)) show(node);
  },
});
