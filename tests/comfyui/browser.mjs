// The real frontend in headless Chromium.  usage: node browser.mjs TASK.json
// TASK: {url, chromium, export: [{name, note, graph, out, shot}], drop: {workflow, shot, seconds}}
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

// Let the frontend build the graph, set it out in columns by depth with the note in front, and keep what it serializes.
async function exportWorkflow(page, { name, note, graph, out, shot }) {
  const workflow = await page.evaluate(
    async ({ name, note, graph }) => {
      await window.app.loadApiJson(graph, name);
      await new Promise((done) => setTimeout(done, 800));
      const g = window.app.graph;
      const after = new Map(g.nodes.map((n) => [n.id, []]));
      const links = [...(g.links.values ? g.links.values() : Object.values(g.links))].filter(Boolean);
      for (const link of links) after.get(link.origin_id).push(g.getNodeById(link.target_id));
      const left = new Map(); // steps to the end of the graph: a node stands just before the first that needs it
      const stepsLeft = (node) => {
        if (!left.has(node.id)) left.set(node.id, 1 + Math.max(-1, ...after.get(node.id).map(stepsLeft)));
        return left.get(node.id);
      };
      const most = Math.max(...g.nodes.map(stepsLeft));
      const columns = Array.from({ length: most + 1 }, () => []);
      for (const node of g.nodes) columns[most - left.get(node.id)].push(node);
      let x = 560;
      for (const column of columns) {
        let y = 0;
        for (const node of column) {
          const least = node.computeSize();
          node.setSize([Math.max(300, least[0], node.type === 'CLIPTextEncode' ? 400 : 0), Math.max(least[1], node.type === 'SaveImage' ? 320 : 0)]);
          node.pos = [x, y];
          y += node.size[1] + 70;
        }
        x += Math.max(...column.map((n) => n.size[0])) + 80;
      }
      for (const node of g.nodes) for (const w of node.widgets ?? []) if (w.name === 'control_after_generate') w.value = 'fixed';
      const paper = window.LiteGraph.createNode('MarkdownNote');
      paper.title = 'Files';
      g.add(paper);
      paper.pos = [0, 0];
      paper.widgets[0].value = note.replaceAll('\n', '\n\n').replaceAll('\n\n\n\n', '\n\n');
      paper.setSize([500, 440]);
      const right = Math.max(...g.nodes.map((n) => n.pos[0] + n.size[0]));
      const bottom = Math.max(...g.nodes.map((n) => n.pos[1] + n.size[1]));
      const { canvas } = window.app.canvas;
      const ds = window.app.canvas.ds;
      ds.scale = Math.min((canvas.clientWidth - 160) / (right + 80), (canvas.clientHeight - 160) / (bottom + 120));
      ds.offset = [90 / ds.scale, 110 / ds.scale];
      window.app.canvas.setDirty(true, true);
      return g.serialize();
    },
    { name, note, graph },
  );
  fs.writeFileSync(out, JSON.stringify(workflow, null, 2) + '\n');
  await page.waitForTimeout(1200);
  await page.screenshot({ path: shot });
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
