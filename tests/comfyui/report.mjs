// Reports and warnings on the page, in both renderers and after a reload.  usage: node report.mjs TASK.json
// TASK: {url, chromium, playwright, graph, shots}; prints what the nodes show, as JSON.
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { createRequire } from 'node:module';

const task = JSON.parse(fs.readFileSync(process.argv[2], 'utf8'));
const { chromium } = createRequire(task.playwright + '/')('playwright-core');
const profile = fs.mkdtempSync(path.join(os.tmpdir(), 'twinflow-chromium-'));
const context = await chromium.launchPersistentContext(profile, {
  executablePath: task.chromium, headless: true, viewport: { width: 1600, height: 1000 },
  args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking'],
});
try {
  const page = context.pages()[0] ?? (await context.newPage());
  page.setDefaultTimeout(300000);
  const open = async () => {
    await page.goto(task.url, { waitUntil: 'domcontentloaded' });
    await page.waitForFunction(() => window.app?.extensionManager && window.app.graph);
    await page.waitForTimeout(4000);
  };
  // text as the page draws it, and boxes in the graph's units
  const seen = () =>
    page.evaluate(() =>
      window.app.graph.nodes.map((node) => {
        const element = node.widgets?.find((w) => w.name === 'twinflow')?.element;
        const box = element?.isConnected ? element.getBoundingClientRect() : { width: 0, height: 0, bottom: 0 };
        const { canvas, ds } = window.app.canvas;
        const bottom = (box.bottom - canvas.getBoundingClientRect().top) / ds.scale - ds.offset[1];
        const hidden = (node.widgets ?? []).filter((w) => w.hidden).map((w) => w.name);
        const labels = Object.fromEntries((node.inputs ?? []).filter((i) => i.label).map((i) => [i.name, i.label]));
        return { id: node.id, type: node.type, text: element?.innerText ?? '', shown: [box.width, box.height], hidden, labels, bottom, pos: [...node.pos], size: [...node.size] };
      }),
    );
  const out = {};
  await open();
  for (const vue of [false, true]) {
    await page.evaluate((on) => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on), vue);
    await page.waitForTimeout(1500);
    await page.evaluate((graph) => window.app.loadApiJson(graph, 'reports'), task.graph);
    await page.waitForTimeout(2500);
    await page.evaluate(() => {
      [[1, 2, 3], [4, 5], [6, 7], [8, 9]].forEach((column, i) => {
        let y = 60; // close together, so that a node that grows must make its neighbours move
        for (const id of column) {
          const node = window.app.graph.getNodeById(id);
          node.pos = [i * 380, y];
          y += node.size[1] + 40;
        }
      });
      for (const node of window.app.graph.nodes) for (const w of node.widgets ?? []) if (w.name === 'seed') w.value = Math.floor(Math.random() * 1e9);
    });
    await page.waitForTimeout(1000);
    await page.evaluate(() => new Promise((done, failed) => {
      window.app.api.addEventListener('execution_error', (e) => failed(new Error(e.detail.exception_message)));
      window.app.api.addEventListener('execution_success', () => done());
      window.app.queuePrompt(0, 1);
    }));
    const name = vue ? 'nodes2' : 'canvas';
    for (const when of ['', '-reloaded']) {
      if (when) await open();
      await page.keyboard.press('.');
      await page.waitForTimeout(2500);
      out[name + when] = await seen();
      await page.screenshot({ path: `${task.shots}/${name}${when}.png` });
    }
  }
  console.log(JSON.stringify(out));
} finally {
  await context.close();
  fs.rmSync(profile, { recursive: true, force: true });
}
