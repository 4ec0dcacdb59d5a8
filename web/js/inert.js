// Inputs that have no effect as the others are set: hidden, or their label says what replaces them.
import { app } from '../../../scripts/app.js';

const CUSTOM = ['steps', 'start_gap', 'end_gap', 'warp_a', 'warp_b', 'warp_c'];
const value = (node, name) => node.widgets?.find((widget) => widget.name === name)?.value;
const linked = (node, name) => node.inputs?.find((input) => input.name === name)?.link != null;

// node -> {widget: what replaces it, or '' to hide it}
const INERT = {
  TwinFlowSchedule: (node) => (value(node, 'preset') === 'custom' ? {} : Object.fromEntries(CUSTOM.map((name) => [name, '']))),
  TwinFlowUnifiedSampler: (node) => (value(node, 'noise') === 'constant' ? {} : { stochasticity: '' }),
  TwinFlowSampleLatent: (node) => {
    const [sigmas, sampler] = [linked(node, 'sigmas'), linked(node, 'sampler')];
    const inert = sigmas ? { denoise: 'unused: sigmas is linked' } : {};
    if (sigmas && sampler) inert.preset = 'unused: sigmas and sampler are linked';
    else if (sigmas) inert.preset = 'sampler only: sigmas is linked';
    else if (sampler) inert.preset = 'sigmas only: sampler is linked';
    return inert;
  },
};

function refresh(node) {
  const inert = INERT[node.comfyClass](node);
  let changed = false;
  for (const widget of node.widgets ?? []) {
    const reason = inert[widget.name];
    const hide = reason === '' && !linked(node, widget.name);
    changed ||= hide !== !!widget.hidden;
    widget.hidden = hide;
    widget.options.hidden = hide;
    if (widget.ownLabel === undefined) widget.ownLabel = widget.label ?? null;
    const label = reason ? `${widget.ownLabel ?? widget.name} (${reason})` : (widget.ownLabel ?? undefined);
    if (widget.label !== label) widget.label = label;
    const off = !!reason?.startsWith('unused');
  }
  if (changed) node.setSize([node.size[0], node.computeSize()[1]]);
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
