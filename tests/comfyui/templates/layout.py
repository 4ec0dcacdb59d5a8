"""What stands together on a template's page, and the widgets that its app mode shows."""

PROMPT, SEED, PRESET = ("prompt", "text"), ("sample", "seed"), ("sample", "preset")
SIZE = [("latent", "width"), ("latent", "height")]
MODEL = [["clip", "vae", "model"]]
SAMPLE = [["sample"], ["decode", "save"]]  # a sampler grows with its preview: nothing stands below it
PLAIN = {"1 Model": MODEL, "2 Prompt": [["prompt", "latent"]], "3 Sample": SAMPLE}
