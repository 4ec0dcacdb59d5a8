"""One ComfyUI under load: does every prompt draw what it draws alone, does memory stay, does it survive what is absurd?

    python benchmarks/server_load.py --comfyui PATH        (with an interpreter that has ComfyUI's requirements)

Tiny models of every family that this ComfyUI has, a LoRA, an adapter and the emoji models, with random settings: first
each alone, after all is unloaded; then all of them several times, in random order, by two threads, among prompts that are
interrupted, refused or absurd; then load and unload.  Nothing is cached between prompts.  Exits 1 where a picture differs,
the server's memory grows by more than the limit, or an absurd prompt takes memory or gives no clear error.
"""

import argparse
import hashlib
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
sys.path[:0] = [str(REPOSITORY / "tests" / "comfyui")]

import tiny  # noqa: E402
from server import Server  # noqa: E402

LIMIT = 0.01  # growth of memory
UNIQUE = 40


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def write(models: Path, goldens: Path, families: list[str]) -> None:
    for name in families:
        golden = tiny.read(goldens, name)
        tiny.save(golden.weights, models / "diffusion_models" / f"{name}.safetensors")
        if name == "qwen":
            tiny.save(golden.plain, models / "diffusion_models" / "plain.safetensors")
            parts = tiny.lora(golden.weights, ("attn.to_q", "attn.to_v"))
            lora = {f"diffusion_model.{m}.lora_{h}.weight": t for m, ab in parts.items() for h, t in zip("AB", ab, strict=True)}
            tiny.save(lora, models / "loras" / "lora.safetensors")
            tiny.save(golden.second, models / "loras" / "embedder.safetensors")
        extra = {"a.pooled": golden.tensors["c1"][0]} if name == "sd3" else {}
        prompts = {"a.embeds": golden.tensors["c0"][0], **extra}
        tiny.save(prompts, models / "prompts" / f"{name}.safetensors", {"twinflow.prompts": '{"a": "a"}'})


def drawn(family: str, rng: random.Random) -> dict:
    """A prompt that ends in a latent on disk, with random settings."""
    seed, preset = rng.randrange(2**32), rng.choice(["1 step", "2 steps", "4 steps", "8 steps"])
    graph, model = {}, "plain" if family == "adapter" else "qwen" if family == "lora" else family
    if family == "emoji":
        words = rng.choice(["dog face", "red heart", "flag of Japan", "pizza"])
        file = rng.choice(["TwinFlow emoji: distilled", "TwinFlow emoji: base"])
        graph |= {"prompt": node("TwinFlowEmojiPrompt", words=words, batch_size=rng.choice([1, 2]))}
        positive, latent = ["prompt", 0], ["prompt", 2]
    else:
        file = f"{model}.safetensors"
        prompts = f"{'qwen' if model == 'plain' else model}.safetensors"
        size = rng.choice([64, 96, 128])
        graph |= {
            "prompt": node("TwinFlowCachedPrompt", file=prompts, prompt=""),
            "latent": node("EmptySD3LatentImage", width=size, height=64, batch_size=rng.choice([1, 3])),
        }
        positive, latent = ["prompt", 0], ["latent", 0]
    adapter = "embedder.safetensors" if family == "adapter" else "none"
    loader = dict(model_name=file, adapter=adapter, adapter_strength=1.0, weight_dtype="default")
    graph |= {"model": node("TwinFlowModelLoader", **loader)}
    if family == "lora":
        strength = rng.choice([0.5, 1.0, -1.0])
        graph |= {"lora": node("TwinFlowLoraLoader", model=["model", 0], lora_name="lora.safetensors", strength=strength)}
    common = dict(model=["lora" if family == "lora" else "model", 0], positive=positive, latent_image=latent)
    graph["sample"] = node("TwinFlowSampleLatent", **common, preset=preset, seed=seed, cfg=1.0, denoise=1.0)
    return graph | {"save": node("SaveLatent", samples=["sample", 0], filename_prefix="load")}


def wrong(good: dict, rng: random.Random) -> dict:
    """Of a sound prompt one that a node, or the API, has to refuse."""
    bad = json.loads(json.dumps(good))
    rng.choice([
        lambda: bad["sample"]["inputs"].update(cfg=float("nan")),
        lambda: bad["model"]["inputs"].update(model_name="absent.safetensors"),
        lambda: bad["model"]["inputs"].update(adapter_strength=float("inf")),
        lambda: bad["sample"]["inputs"].update(preset="5 steps"),
        lambda: bad["sample"]["inputs"].update(cfg=3.0),
        lambda: bad["prompt"]["inputs"].update(prompt="absent", words="zzz"),
    ])()  # fmt: skip
    return bad


def absurd() -> dict[str, dict]:
    """Sizes and steps that no computer has room or time for, past the ranges that the API checks."""
    base = drawn("qwen", random.Random(0))
    schedule = dict(
        preset="custom", start_gap=0.001, end_gap=0.0, warp_a=1.0, warp_b=1.0, warp_c=1.0, denoise=1.0,
    )  # fmt: skip
    plot = lambda **more: {
        "n": node("PrimitiveInt", value=10**12),
        "s": node("TwinFlowSchedule", **schedule | {"steps": ["n", 0]} | more),
        "p": node("TwinFlowSchedulePlot", style="few", width=512, height=512, sigmas=["s", 0]),
    }
    large = lambda side, batch: base | {"latent": node("EmptySD3LatentImage", width=side, height=side, batch_size=batch)}
    return {
        "16384 x 16384": large(16384, 1),
        "256 of 2048 x 2048": large(2048, 256),
        "4096 of 16384 x 16384": large(16384, 4096),
        "10^12 steps": plot(),
        "a warp of NaN": plot(warp_a=float("nan"), steps=1000),
        "a plot of 10^12 pixels": {
            "n": node("PrimitiveInt", value=10**6),
            "p": node("TwinFlowSchedulePlot", style="few", width=["n", 0], height=["n", 0]),
        },
        "emoji at scale 10^6": {
            "n": node("PrimitiveInt", value=10**6),
            "e": node("TwinFlowEmojiPrompt", words="dog face", batch_size=256),
            "p": node("TwinFlowEmojiImage", latent=["e", 2], scale=["n", 0]),
        },
    }


def latent_bytes(graph: dict) -> int:
    """What core's own node takes for an empty latent; what it cannot have it refuses itself."""
    own = graph.get("latent", {"inputs": {}})["inputs"]
    size = own.get("width", 0) // 8 * (own.get("height", 0) // 8) * own.get("batch_size", 0) * 16 * 4
    return size if size < 2**33 else 0


def memory(server: Server, what: str = "VmRSS") -> int:
    """Bytes of the server's process."""
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(what)).split()[1])


def latent_of(server: Server, outcome) -> str:
    (file,) = outcome.outputs["save"]["latents"]
    path = server.base / "output" / file["subfolder"] / file["filename"]
    from safetensors.torch import load_file

    tensors = load_file(path)
    path.unlink()
    return hashlib.blake2b(b"".join(tensors[k].numpy().tobytes() for k in sorted(tensors))).hexdigest()


def refusal(server: Server, graph: dict) -> str:
    """What the server says to a prompt; "" where it draws it."""
    try:
        return server.run(graph).error
    except ValueError as error:
        return str(error)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", default=Path.home() / "ComfyUI", type=Path)
    parser.add_argument("--prompts", default=200, type=int)
    parser.add_argument("--cycles", default=20, type=int)
    options = parser.parse_args()
    goldens = REPOSITORY / "tests" / "goldens" / "data"
    version = tuple(int(n) for n in (options.comfyui / "comfyui_version.py").read_text().split('"')[1].split("."))
    families = tiny.backbones(version)
    with tempfile.TemporaryDirectory() as folder:
        server = Server(options.comfyui, Path(folder), "--cache-none")
        try:
            write(server.models, goldens, families)
            server.wait()
            failed = run(server, [*families, "lora", "adapter", "emoji"], options)
        finally:
            server.stop()
    sys.exit(failed)


def run(server: Server, kinds: list[str], options) -> int:
    rng, failed, began = random.Random(1), 0, time.time()
    graphs = [drawn(kinds[i % len(kinds)], rng) for i in range(UNIQUE)]
    alone = []
    for graph in graphs:
        server.post("/free", {"unload_models": True, "free_memory": True})
        outcome = server.run(graph)
        assert not outcome.error, outcome.error
        alone.append(latent_of(server, outcome))
    print(f"{len(graphs)} prompts of {len(kinds)} kinds, each alone: {time.time() - began:.0f} s", flush=True)

    jobs, lock, seen = (
        [i % UNIQUE for i in range(options.prompts)],
        threading.Lock(),
        dict.fromkeys(("equal", "different", "interrupted", "refused", "not refused"), 0),
    )
    rng.shuffle(jobs)
    sizes: list[int] = []

    def work(number: int) -> None:
        own = random.Random(number)
        while True:
            with lock:
                if not jobs:
                    return
                job = jobs.pop()
            what = own.random()
            if what < 0.1:
                told = refusal(server, wrong(graphs[job], own))
                kind = "refused" if told and "Traceback" not in told else "not refused"
            else:
                stop = (lambda _: server.post("/interrupt", {})) if what < 0.15 else None
                outcome = server.run(graphs[job], on_progress=stop)
                while outcome.of("execution_interrupted") and what >= 0.15:  # by the other thread
                    outcome = server.run(graphs[job])
                if outcome.of("execution_interrupted"):
                    kind = "interrupted"
                else:
                    kind = "equal" if not outcome.error and latent_of(server, outcome) == alone[job] else "different"
            with lock:
                seen[kind] += 1
                sizes.append(memory(server))

    began = time.time()
    threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    parts = [statistics.median(sizes[n : n + len(sizes) // 4]) for n in range(0, len(sizes) - 3, len(sizes) // 4)]
    growth = parts[-1] / parts[1] - 1
    print(f"{sum(seen.values())} prompts by two threads in {time.time() - began:.0f} s: {seen}", flush=True)
    print(f"memory by quarters: {', '.join(f'{n / 2**20:.0f} MiB' for n in parts)}; second to last {growth:+.2%}", flush=True)
    failed += seen["different"] > 0 or seen["not refused"] > 0 or growth > LIMIT

    sizes.clear()
    for cycle in range(options.cycles):
        server.post("/free", {"unload_models": True, "free_memory": True})
        outcome = server.run(graphs[cycle % 7])
        failed += latent_of(server, outcome) != alone[cycle % 7]
        sizes.append(memory(server))
    half = len(sizes) // 2
    growth = statistics.median(sizes[half:]) / statistics.median(sizes[:half]) - 1
    print(f"{options.cycles} cycles of unloading and loading: memory {growth:+.2%} in the second half", flush=True)
    failed += growth > LIMIT

    for name, graph in absurd().items():
        before, began = memory(server, "VmHWM"), time.time()
        told = refusal(server, graph)
        took = (memory(server, "VmHWM") - before - latent_bytes(graph)) / 2**20
        print(f"{name}: {took:+.0f} MiB besides core's latent, {time.time() - began:.1f} s: {told.strip()[:200]}", flush=True)
        failed += not told or took > 256
    outcome = server.run(graphs[0])
    failed += latent_of(server, outcome) != alone[0]
    return int(failed > 0)


if __name__ == "__main__":
    main()
