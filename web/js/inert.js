// Inputs that have no effect as the others are set: hidden; a link that replaces them says so.
import { app } from '../../../scripts/app.js';

const CUSTOM = ['steps', 'start_gap', 'end_gap', 'warp_a', 'warp_b', 'warp_c'];
const value = (node, name) => node.widgets?.find((widget) => widget.name === name)?.value;
const linked = (node, name) => node.inputs?.find((input) => input.name === name)?.link != null;

// node -> the widgets without effect
const INERT = {
  TwinFlowSchedule: (node) => (value(node, 'preset') === 'custom' ? [] : CUSTOM),
  TwinFlowUnifiedSampler: (node) => (value(node, 'noise') === 'constant' ? [] : ['stochasticity']),
  TwinFlowSampleLatent: (node) => (linked(node, 'sigmas') ? (linked(node, 'sampler') ? ['denoise', 'preset'] : ['denoise']) : []),
  TwinFlowSchedulePlot: (node) => (linked(node, 'sigmas') ? ['preset'] : ['style']),
};
// node -> the inputs that replace something once they are linked, and what
const REPLACES = { TwinFlowSampleLatent: { sigmas: 'replaces preset, denoise', sampler: 'replaces preset' }, TwinFlowSchedulePlot: { sigmas: 'replaces preset' } };

function refresh(node) {
  const inert = INERT[node.comfyClass](node);
  const changed = (node.widgets ?? []).filter((w) => !!w.hidden !== (inert.includes(w.name) && !linked(node, w.name)));
  const tall = node.computeSize()[1];
  for (const widget of changed) widget.options.hidden = widget.hidden = !widget.hidden;
  if (changed.length) node.setSize([node.size[0], node.size[1] + node.computeSize()[1] - tall]);
  for (const [name, what] of Object.entries(REPLACES[node.comfyClass] ?? {})) {
    const input = node.inputs?.find((i) => i.name === name);
    if (!input) continue;
    const own = (input.label ?? input.localized_name ?? name).split(' (')[0];
    input.label = linked(node, name) ? `${own} (${what})` : own;
  }
  node.setDirtyCanvas?.(true, true);
}

function after(object, name, then) {
  const first = object[name];
  object[name] = function (...args) {
    const result = first?.apply(this, args);
    then();
    return result;
  };
}

app.registerExtension({
  name: 'TwinFlow.Inert',
  nodeCreated(node) {
    if (!INERT[node.comfyClass]) return;
    const again = () => refresh(node);
    for (const widget of node.widgets ?? []) if (['preset', 'noise'].includes(widget.name)) after(widget, 'callback', again);
    after(node, 'onConnectionsChange', again);
    after(node, 'onConfigure', again);
    setTimeout(again);
  },
  afterConfigureGraph() {
    for (const node of (app.rootGraph ?? app.graph)?.nodes ?? []) if (INERT[node.comfyClass]) refresh(node);
  },
});
