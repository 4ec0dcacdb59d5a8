// The real frontend in headless Chromium.  usage: node browser.mjs TASK.json
// TASK: {url, chromium, export: [{name, notes, groups, graph, extra, packs, out}], look: {names, shots}, drop: {workflow, shot, seconds}}
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { createRequire } from 'node:module';

const task = JSON.parse(fs.readFileSync(process.argv[2], 'utf8'));
const { chromium } = createRequire(task.playwright + '/')('playwright-core');
const profile = fs.mkdtempSync(path.join(os.tmpdir(), 'twinflow-chromium-'));
const context = await chromium.launchPersistentContext(profile, {
  executablePath: task.chromium,
  headless: true,
  viewport: { width: 1600, height: 1000 },
  args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
});
try {
  const page = context.pages()[0] ?? (await context.newPage());
  page.setDefaultTimeout(400000); // a busy computer is slow, not wrong
  await page.goto(task.url, { waitUntil: 'domcontentloaded', timeout: 400000 });
  await page.waitForFunction(() => window.app?.extensionManager && window.app.graph, null, { timeout: 400000 });
  await page.waitForTimeout(2000);
  for (const one of task.export ?? []) await exportWorkflow(page, one);
  if (task.look) console.log(JSON.stringify(await look(page, task.look)));
  if (task.drop) console.log(JSON.stringify(await dropAndRun(page, task.drop)));
} finally {
  await context.close();
  fs.rmSync(profile, { recursive: true, force: true });
}

// Let the frontend build the graph, set it out in groups of columns below the notes, and keep what it serializes.
// The sizes are Nodes 2.0's, which are larger than LiteGraph's, so nothing overlaps in either.
async function exportWorkflow(page, { name, notes, groups, below, graph, extra, packs, out }) {
  await setting(page, 'Comfy.VueNodes.Enabled', true);
  const workflow = await page.evaluate(
    async ({ name, notes, groups, below, graph, extra, packs }) => {
      const TITLE = 30, FOOTER = below.length ? 8 : 34, SPACE = 30, PAD = 14, HEAD = 44; // a footer carries "Error" and "Show advanced"
      const beside = Object.entries(groups).filter(([title]) => !below.includes(title)).map(([, columns]) => columns);
      const columns = beside.flat().length;
      const WIDE = below.length || columns > 5 ? 250 : columns > 4 ? 280 : 330;
      const WIDTH = { CLIPTextEncode: columns > 4 ? WIDE : 380, SaveImage: columns > 4 ? WIDE : 380, TwinFlowVelocityFields: 760, TwinFlowEmojiImage: 270 };
      const ROOM = { CLIPTextEncode: 150, TextEncodeQwenImageEdit: 190, SaveImage: columns > 4 ? 300 : 420, LoadImage: 320, TwinFlowModelLoader: below.length ? 250 : 300, TwinFlowLoraLoader: 210, TwinFlowModelPatch: 190, TwinFlowSchedulePlot: below.length ? 372 : 270, TwinFlowEmojiImage: 370, TwinFlowVelocityFields: 860 };
      const drawn = () => new Promise((done) => setTimeout(done, 1500));
      await window.app.loadApiJson(graph, name);
      const g = window.app.graph;
      const width = (column) => Math.max(...column.map((id) => WIDTH[g.getNodeById(id).type] ?? WIDE));
      for (const columns of Object.values(groups))
        for (const column of columns)
          for (const id of column) {
            const node = g.getNodeById(id);
            node.setSize([width(column), Math.max(node.computeSize()[1], ROOM[node.type] ?? 0)]);
          }
      await drawn(); // Nodes 2.0 makes them as tall as they must be
      for (const node of g.nodes) {
        for (const widget of node.widgets ?? []) if (widget.options?.values?.includes?.('randomize')) widget.value = 'randomize';
        Object.assign(node.properties, packs[String(node.id)]);
      }
      const inner = (columns) => columns.reduce((sum, column) => sum + width(column) + SPACE, 2 * PAD - SPACE);
      const whole = beside.reduce((sum, columns) => sum + inner(columns) + SPACE, -SPACE);
      const papers = notes.map((text, i) => {
        const paper = window.LiteGraph.createNode('MarkdownNote');
        paper.title = [name, '说明'][i];
        g.add(paper);
        paper.widgets[0].value = text;
        paper.setSize([(whole - SPACE) / 2, below.length ? 70 : 100]);
        paper.pos = [i * (whole + SPACE) / 2, TITLE];
        return paper;
      });
      await drawn();
      const high = Math.max(...papers.map((paper) => paper.size[1]));
      for (const paper of papers) paper.setSize([paper.size[0], high]);
      const top = TITLE + high + SPACE;
      let x = 0;
      let before;
      for (const [title, columns] of Object.entries(groups)) {
        const after = x;
        const [left, above] = below.includes(title) ? [before.pos[0], before.pos[1] + before.size[1] + SPACE] : [x, top];
        let bottom = 0;
        x = left;
        x += PAD;
        for (const column of columns) {
          let y = above + HEAD + TITLE;
          for (const id of column) {
            const node = g.getNodeById(id);
            node.pos = [x, y];
            y += node.size[1] + FOOTER + TITLE;
          }
          bottom = Math.max(bottom, y - TITLE);
          x += width(column) + SPACE;
        }
        x += PAD - SPACE;
        const group = new window.LiteGraph.LGraphGroup(title);
        g.add(group);
        group.pos = [left, above];
        group.size = [x - left, bottom - above];
        x = Math.max(after, x + SPACE);
        before = group;
      }
      await drawn();
      const tall = Math.max(...g.groups.map((group) => group.pos[1] + group.size[1]));
      const scale = Math.min(1480 / whole, 860 / tall);
      const made = g.serialize();
      made.extra = { ...extra, workflowRendererVersion: 'LG', ds: { scale, offset: [70 / scale, 100 / scale] } };
      return made;
    },
    { name, notes, groups, below, graph, extra, packs },
  );
  fs.writeFileSync(out, JSON.stringify(workflow, null, 2) + '\n');
}

function setting(page, name, value) {
  return page.evaluate(([name, value]) => window.app.extensionManager.setting.set(name, value), [name, value]);
}

// As a user first sees them: every template in both renderers, then its help, the missing files, app mode.
async function look(page, { names, shots }) {
  const first = { views: [] };
  for (const renderer of ['LiteGraph', 'Nodes 2.0']) {
    await setting(page, 'Comfy.VueNodes.Enabled', renderer === 'Nodes 2.0');
    for (const name of names) {
      await openTemplate(page, name, !first.views.length);
      await page.waitForTimeout(2500);
      first.views.push({ name, renderer, ...(await page.evaluate(seen)) });
      await page.screenshot({ path: `${shots}/${name}, ${renderer}.png` });
    }
  }
  await page.locator('.lg-node').getByText('Error', { exact: true }).first().click();
  await page.getByText('Download all').waitFor();
  first.downloads = await page.getByRole('button', { name: 'Download', exact: false }).count();
  await page.evaluate(() => window.app.canvas.selectNode(window.app.graph.nodes.find((n) => n.type === 'TwinFlowSampleLatent')));
  await page.getByTestId('info-button').first().click();
  await page.getByText('Samples a TwinFlow model in one node').waitFor();
  await page.screenshot({ path: `${shots}/help.png` });
  await page.evaluate(() => window.app.extensionManager.command.execute('Comfy.ToggleLinear'));
  await page.getByText('Skip').first().click({ timeout: 5000 }).catch(() => {}); // a tour, the first time
  await page.getByText('Number of runs').waitFor();
  first.app = await page.locator('textarea').evaluateAll((all) => all.map((one) => one.value));
  await page.screenshot({ path: `${shots}/app mode.png` });
  return first;
}

// The template browser, which is slow, for the first; what its cards do for the others.
async function openTemplate(page, name, byHand) {
  if (byHand) {
    await page.evaluate(() => window.app.extensionManager.command.execute('Comfy.BrowseTemplates'));
    const dialog = page.getByRole('dialog').last();
    await dialog.getByText('TwinFlow', { exact: true }).first().click();
    await dialog.getByText(name, { exact: true }).first().click();
  } else {
    await page.evaluate(async (name) => {
      const workflow = await (await fetch(`/api/workflow_templates/twinflow/${encodeURIComponent(name)}.json`)).json();
      await window.app.loadGraphData(workflow, true, true, name, { openSource: 'template' });
    }, name);
  }
  const open = (name) => window.app.graph.nodes.some((n) => n.type === 'MarkdownNote' && n.title === name);
  await page.waitForFunction(open, name);
}

// Boxes in the graph's units, with the bars above and below that a node may have; where Nodes 2.0 draws, as it draws them.
function seen() {
  const { canvas, ds } = window.app.canvas;
  const at = canvas.getBoundingClientRect();
  const boxes = window.app.graph.nodes.map((n) => {
    let box = [n.pos[0], n.pos[1] - 30, n.pos[0] + n.size[0], n.pos[1] + n.size[1]];
    const drawn = document.querySelector(`[data-node-id="${n.id}"]`);
    if (drawn) {
      const all = [drawn, ...drawn.querySelectorAll('button')].map((e) => e.getBoundingClientRect()).filter((r) => r.width);
      box = [Math.min(...all.map((r) => r.left)), Math.min(...all.map((r) => r.top)), Math.max(...all.map((r) => r.right)), Math.max(...all.map((r) => r.bottom))];
      box = box.map((v, i) => (v - (i % 2 ? at.top : at.left)) / ds.scale - ds.offset[i % 2]);
    }
    return { type: n.type, box, drawn: !!drawn };
  });
  const [x, y] = ds.offset;
  return { scale: ds.scale, boxes, view: [-x, -y, canvas.clientWidth / ds.scale - x, canvas.clientHeight / ds.scale - y] };
}

// As a user does: drop the file on the canvas, press Run, see the picture.
async function dropAndRun(page, { workflow, shot, seconds }) {
  const text = fs.readFileSync(workflow, 'utf8');
  const drop = await page.evaluateHandle((text) => {
    const data = new DataTransfer();
    data.items.add(new File([text], 'workflow.json', { type: 'application/json' }));
    return data;
  }, text);
  const wanted = JSON.parse(text).nodes.length;
  await page.dispatchEvent('#graph-canvas', 'dragover', { dataTransfer: drop, clientX: 700, clientY: 500 });
  await page.dispatchEvent('#graph-canvas', 'drop', { dataTransfer: drop, clientX: 700, clientY: 500 });
  await page.waitForFunction((n) => window.app.graph.nodes.length === n, wanted, { timeout: 120000 });
  await page.waitForTimeout(1000);
  const ended = page.evaluate(
    (ms) =>
      new Promise((done, failed) => {
        const api = window.app.api;
        const images = [];
        api.addEventListener('executed', (e) => images.push(...(e.detail?.output?.images ?? [])));
        api.addEventListener('execution_error', (e) => failed(new Error(e.detail.exception_message)));
        api.addEventListener('execution_success', () => done(images));
        setTimeout(() => failed(new Error('nothing came within the time')), ms);
      }),
    seconds * 1000,
  );
  await page.getByTestId('queue-button').first().click();
  const images = await ended;
  await page.keyboard.press('.');
  await page.waitForTimeout(2500);
  const types = await page.evaluate(() => window.app.graph.nodes.map((n) => n.type));
  const shown = await page.evaluate(() => window.app.graph.nodes.filter((n) => n.imgs?.length && n.imgs[0].naturalWidth).map((n) => n.type));
  const reports = await page.locator('.twinflow-report b').allTextContents();
  await page.screenshot({ path: shot });
  return { images, types, shown, reports };
}
