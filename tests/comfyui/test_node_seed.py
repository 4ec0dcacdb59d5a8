"""A seed's promise: a row is drawn alike alone, in a batch and in any order of rows, in every preset and through core's nodes.

Fresh noise is equal to the bit; pictures as nearly as the network answers a row alone and in a batch (matrix products of other
sizes round otherwise), which is measured beside core's own euler.
"""

import pytest
import tiny
import torch

PRESETS = {
    "1 step": ("few", 0.0), "2 steps": ("few", 1.0), "4 steps": ("few", 1.0), "8 steps": ("any", 0.0),
    "30 steps": ("multi", 0.0),
}  # fmt: skip
ROWS = 5


@pytest.fixture(params=list(tiny.NAMES))
def golden(request, comfy, goldens):
    tiny.need_backbone(request.param, comfy.version)
    return tiny.read(goldens, request.param)


@pytest.fixture
def model(golden, comfy, run):
    file = golden.write(comfy.models / "diffusion_models", golden.weights, name="seed")
    return run("TwinFlowModelLoader", model_name=file, weight_dtype="float32")[0]


@pytest.fixture
def draws(comfy, monkeypatch):
    """What was drawn afresh since the last look, (B, draws, ...)."""
    FreshNoise, kept = comfy.part("twinflow.fresh_noise").FreshNoise, []
    draw = FreshNoise.__call__
    monkeypatch.setattr(FreshNoise, "__call__", lambda self, x: kept.append(draw(self, x)) or kept[-1])

    def look():
        found = torch.stack(kept, 1) if kept else None
        kept.clear()
        return found

    return look


@pytest.fixture
def sample(run, model, golden, draws):
    """(latent's samples, draws) by one node or by core's."""
    prompt = golden.conditioning()

    def sample(latent, preset="2 steps", node="TwinFlowSampleLatent", seed=11, **parts):
        if node == "TwinFlowSampleLatent":
            inputs = dict(
                positive=prompt, latent_image=latent, preset=preset, seed=seed, cfg=1.0, denoise=parts.get("denoise", 1.0)
            )
            return run(node, model=model, **inputs)[0]["samples"], draws()
        parts = custom(run, preset) | parts
        if node == "SamplerCustom":
            more = dict(add_noise=True, noise_seed=seed, cfg=1.0, positive=prompt, negative=prompt) | parts
            return run(node, model=model, latent_image=latent, **more)[0]["samples"], draws()
        guider = run("BasicGuider", model=model, conditioning=prompt)[0]
        noise = run("RandomNoise", noise_seed=seed)[0]
        return run(node, noise=noise, guider=guider, latent_image=latent, **parts)[0]["samples"], draws()

    return sample


def custom(run, preset, denoise=1.0):
    own = dict(steps=1, start_gap=0.0, end_gap=0.0, warp_a=1.0, warp_b=1.0, warp_c=1.0, denoise=denoise)
    style, share = PRESETS[preset]
    sampler = dict(style=style, order="1", noise="constant", stochasticity=share, extrapolation=0.0)
    return {"sigmas": run("TwinFlowSchedule", preset=preset, **own)[0], "sampler": run("TwinFlowUnifiedSampler", **sampler)[0]}


def empty(run, golden, rows=ROWS):
    return run("EmptySD3LatentImage", width=64, height=64, batch_size=rows)[0]


def rows_of(run, latent, first, count=1):
    return run("LatentFromBatch", samples=latent, batch_index=first, length=count)[0]


def close(a, b, tolerance=1e-4):
    return float((a - b).abs().max() / b.abs().max()) < tolerance


def alike(found, wanted, rows):
    """found: of these rows alone; wanted: of the whole batch."""
    (samples, fresh), (whole, all_fresh) = found, wanted
    assert (fresh is None) == (all_fresh is None)
    assert fresh is None or torch.equal(fresh, all_fresh[rows])
    assert close(samples, whole[rows])


@pytest.mark.parametrize("preset", PRESETS)
def test_latent_from_batch(run, golden, sample, preset):
    latent = empty(run, golden)
    whole = sample(latent, preset)
    assert (whole[1] is None) == (PRESETS[preset][1] == 0)
    assert not close(whole[0][:1], whole[0][1:2], 0.05)
    for first, count in ((0, 1), (3, 1), (2, 3)):
        alike(sample(rows_of(run, latent, first, count), preset), whole, list(range(first, first + count)))


@pytest.mark.parametrize("node", ["SamplerCustom", "SamplerCustomAdvanced"])
def test_core_s_own_nodes(run, golden, sample, node):
    latent = empty(run, golden)
    whole = sample(latent, "4 steps")
    for own in (latent, rows_of(run, latent, 4)):
        alike(sample(own, "4 steps", node), whole, list(range(ROWS)) if own is latent else [4])


def test_rows_in_any_order(run, golden, sample):
    """batch_index as nodes for batches write it: turned round, with gaps, twice the same."""
    latent = empty(run, golden)
    whole = sample(latent)
    for rows in ([4, 0], [3, 1, 2], [2, 2, 0]):
        alike(sample({**latent, "samples": latent["samples"][: len(rows)], "batch_index": rows}), whole, rows)


def test_repeated_and_joined_batches(run, golden, sample):
    """RepeatLatentBatch goes on counting; joined batches keep their own; with a fixed seed behaviour all rows are one."""
    whole = sample(empty(run, golden))
    alike(sample(run("RepeatLatentBatch", samples=empty(run, golden, 1), amount=3)[0]), whole, [0, 1, 2])
    third = rows_of(run, empty(run, golden), 2)
    alike(sample(run("RepeatLatentBatch", samples=third, amount=2)[0]), whole, [2, 3])
    alike(sample(run("LatentBatch", samples1=third, samples2=empty(run, golden, 2))[0]), whole, [2, 0, 1])
    fixed = run("LatentBatchSeedBehavior", samples=rows_of(run, empty(run, golden), 1, 2), seed_behavior="fixed")[0]
    alike(sample(fixed), whole, [1, 1])
    repeated = run("RepeatLatentBatch", samples=empty(run, golden, 2), amount=2)[0]
    alike(sample(rows_of(run, repeated, 3)), whole, [3])


def test_image_to_image(run, golden, sample):
    """One picture repeated, and several; each row's noise is its own, and so is what is drawn afresh."""
    shape = (ROWS, *golden.latents(1)[1:])
    pictures = {"samples": torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 0.3}
    repeated = run("RepeatLatentBatch", samples={"samples": pictures["samples"][:1]}, amount=ROWS)[0]
    for latent in (pictures, repeated):
        whole = sample(latent, denoise=0.7)
        for row in (0, 3):
            alike(sample(rows_of(run, latent, row), denoise=0.7), whole, [row])


def test_an_empty_row_beside_a_picture(run, golden, model, sample):
    """Whether a row starts from noise alone is its own affair; where core shifts latents, it shifts empty ones, too."""
    latent = {"samples": torch.zeros(golden.latents(2))}
    latent["samples"][1] = 0.3
    if model.model.process_latent_in(latent["samples"])[0].any():
        pytest.skip("core shifts an empty row beside a picture, so it is not empty")
    whole = sample(latent)
    for row in (0, 1):
        alike(sample(rows_of(run, latent, row)), whole, [row])


def test_a_second_stage_without_noise(run, golden, sample):
    """Its rows differ by what they start from, and all get the fresh noise of the seed."""
    latent = empty(run, golden, 3)
    high, low = run("SplitSigmas", sigmas=custom(run, "4 steps")["sigmas"], step=2)

    def both(latent):
        first, _ = sample(latent, "4 steps", "SamplerCustom", sigmas=high)
        second, fresh = sample({**latent, "samples": first}, "4 steps", "SamplerCustom", sigmas=low, add_noise=False)
        return second, fresh

    whole = both(latent)
    alike(both(rows_of(run, latent, 2)), whole, [2])
    assert torch.equal(whole[1][0], whole[1][1]) and not close(whole[0][:1], whole[0][1:2], 0.05)


def test_pictures_are_as_near_as_core_s(run, model, golden, sample):
    """A row alone and in a batch differ no more than by core's euler, or by a few roundings."""
    latent, euler = empty(run, golden), run("KSamplerSelect", sampler_name="euler")[0]

    def apart(**options):
        whole, one = (sample(own, **options)[0] for own in (latent, rows_of(run, latent, 3)))
        return float((one - whole[3:4]).abs().max() / whole.abs().max())

    core = apart(preset="8 steps", node="SamplerCustom", sampler=euler)
    assert apart(preset="4 steps") <= max(4 * core, 1e-5)


def test_velocity_fields_know_the_row(run, model, golden, comfy):
    """At t = 1 the point is the noise that is added: that of the row, with the next seed."""
    import comfy.sample as core

    latent, fields = empty(run, golden), comfy.part("nodes.fields").fields
    row = fields(model, golden.conditioning(), rows_of(run, latent, 3), 11, [1.0])[0]
    samples = torch.zeros(ROWS, *row.point.shape[1:])
    torch.testing.assert_close(row.point, core.prepare_noise(samples, 12)[3:4])
