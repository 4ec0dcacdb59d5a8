"""A started ComfyUI with the pack in its custom_nodes, driven as its web page drives it: HTTP and websocket."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from dataclasses import dataclass, field
from pathlib import Path

SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.InstalledVersion": "9.9.9"}  # no tour; all else as a user has it
REPOSITORY = Path(__file__).parents[2]


@dataclass
class Outcome:
    """What the websocket said of one prompt."""

    id: str = ""
    events: list[dict] = field(default_factory=list)
    previews: int = 0
    outputs: dict = field(default_factory=dict)

    def of(self, kind: str) -> list[dict]:
        return [e["data"] for e in self.events if e["type"] == kind]

    @property
    def error(self) -> str:
        return "; ".join(e["exception_message"] for e in self.of("execution_error"))


class Server:
    def __init__(self, comfyui: Path, base: Path, *options: str):
        self.base, self.models = base, base / "models"
        for name in ("diffusion_models", "loras", "prompts", "vae", "vae_approx", "text_encoders"):
            (self.models / name).mkdir(parents=True, exist_ok=True)
        (base / "custom_nodes").mkdir(exist_ok=True)
        (base / "custom_nodes" / "twinflow").symlink_to(REPOSITORY)
        settings = base / "user" / "default" / "comfy.settings.json"
        settings.parent.mkdir(parents=True)
        settings.write_text(json.dumps(SETTINGS))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = base / "log.txt"
        command = [
            sys.executable,
            "main.py",
            "--cpu",
            "--listen",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--base-directory",
            str(base),
            "--database-url",
            "sqlite:///:memory:",
            "--disable-auto-launch",
            "--preview-method",
            "latent2rgb",
            *options,
        ]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=comfyui, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )

    def wait(self, seconds: float = 600):
        end = time.time() + seconds
        while time.time() < end:
            if self.process.poll() is not None:
                break
            try:
                return self.get("/system_stats")
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.5)
        raise RuntimeError(f"ComfyUI did not start:\n{self.said()[-3000:]}")

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def get(self, path: str):
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            body = answer.read()
        return json.loads(body) if answer.headers.get_content_type() == "application/json" else body

    def post(self, path: str, value) -> tuple[int, dict]:
        request = urllib.request.Request(self.url + path, json.dumps(value).encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.loads(answer.read() or "{}")
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or "{}")

    def image(self, image: dict) -> bytes:
        return self.get("/view?" + urllib.parse.urlencode(image))

    def run(self, graph: dict, *, on_progress=None, seconds: float = 600) -> Outcome:
        """Queue the graph and follow it to its end.  on_progress(event) is called for every progress message."""
        return asyncio.run(asyncio.wait_for(self.follow(graph, on_progress), seconds))

    async def follow(self, graph: dict, on_progress) -> Outcome:
        import aiohttp

        client, outcome = uuid.uuid4().hex, Outcome()
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{self.url}/ws?clientId={client}", max_msg_size=0) as socket,
        ):
            status, answer = await asyncio.to_thread(self.post, "/prompt", {"prompt": graph, "client_id": client})
            if status != 200:
                raise ValueError(json.dumps(answer))
            outcome.id = answer["prompt_id"]
            async for message in socket:
                if message.type == aiohttp.WSMsgType.BINARY:
                    outcome.previews += 1
                    continue
                event = json.loads(message.data)
                if event.get("data", {}).get("prompt_id", outcome.id) != outcome.id:
                    continue
                outcome.events.append(event)
                if event["type"] == "progress" and on_progress:
                    await asyncio.to_thread(on_progress, event["data"])
                if event["type"] in ("execution_success", "execution_error", "execution_interrupted"):
                    break
        for _ in range(200):  # the history follows a moment after the last message
            if history := self.get(f"/history/{outcome.id}").get(outcome.id):
                outcome.outputs = history["outputs"]
                break
            await asyncio.sleep(0.05)
        return outcome
