// The real frontend in headless Chromium.  usage: node browser.mjs TASK.json
// TASK: {url, chromium, export: [{name, notes, groups, graph, extra, packs, out}], drop: {workflow, shot, seconds}}
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
  if (task.drop) console.log(JSON.stringify(await dropAndRun(page, task.drop)));
} finally {
  await context.close();
  fs.rmSync(profile, { recursive: true, force: true });
}

// Let the frontend build the graph, set it out in groups of columns below the notes, and keep what it serializes.
// The sizes are Nodes 2.0's, which are larger than LiteGraph's, so nothing overlaps in either.
async function exportWorkflow(page, { name, notes, groups, graph, extra, packs, out }) {
  await setting(page, 'Comfy.VueNodes.Enabled', true);
  const workflow = await page.evaluate(
    async ({ name, notes, groups, graph, extra, packs }) => {
      const TITLE = 30, FOOTER = 34, SPACE = 30, PAD = 14, HEAD = 44; // a footer carries "Error" and "Show advanced"
      const columns = Object.values(groups).flat().length;
      const WIDE = columns > 5 ? 250 : columns > 4 ? 280 : 330;
      const WIDTH = { CLIPTextEncode: columns > 4 ? WIDE : 380, SaveImage: columns > 4 ? WIDE : 380 };
      const ROOM = { CLIPTextEncode: 150, TextEncodeQwenImageEdit: 190, SaveImage: columns > 4 ? 300 : 420, LoadImage: 320, TwinFlowModelLoader: 300, TwinFlowLoraLoader: 210, TwinFlowModelPatch: 190, TwinFlowSchedulePlot: 270 };
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
        for (const widget of node.widgets ?? []) if (widget.name === 'control_after_generate') widget.value = 'randomize';
        Object.assign(node.properties, packs[String(node.id)]);
      }
      const inner = (columns) => columns.reduce((sum, column) => sum + width(column) + SPACE, 2 * PAD - SPACE);
      const whole = Object.values(groups).reduce((sum, columns) => sum + inner(columns) + SPACE, -SPACE);
      const papers = notes.map((text, i) => {
        const paper = window.LiteGraph.createNode('MarkdownNote');
        paper.title = [name, '说明'][i];
        g.add(paper);
        paper.widgets[0].value = text;
        paper.setSize([(whole - SPACE) / 2, 100]);
        paper.pos = [i * (whole + SPACE) / 2, TITLE];
        return paper;
      });
      await drawn();
      const high = Math.max(...papers.map((paper) => paper.size[1]));
      for (const paper of papers) paper.setSize([paper.size[0], high]);
      const top = TITLE + high + SPACE;
      let x = 0;
      for (const [title, columns] of Object.entries(groups)) {
        const left = x;
        let bottom = 0;
        x += PAD;
        for (const column of columns) {
          let y = top + HEAD + TITLE;
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
        group.pos = [left, top];
        group.size = [x - left, bottom - top];
        x += SPACE;
      }
      await drawn();
      const tall = Math.max(...g.groups.map((group) => group.pos[1] + group.size[1]));
      const scale = Math.min(1480 / whole, 860 / tall);
      const made = g.serialize();
      made.extra = { ...extra, workflowRendererVersion: 'LG', ds: { scale, offset: [70 / scale, 100 / scale] } };
      return made;
    },
    { name, notes, groups, graph, extra, packs },
  );
  fs.writeFileSync(out, JSON.stringify(workflow, null, 2) + '\n');
}

function setting(page, name, value) {
  return page.evaluate(([name, value]) => window.app.extensionManager.setting.set(name, value), [name, value]);
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
  const texts = await page.evaluate(() => window.app.graph.nodes.flatMap((n) => (n.widgets ?? []).filter((w) => String(w.value).includes('second time embedder')).map(() => n.type)));
  await page.screenshot({ path: shot });
  return { images, types, shown, texts };
}
