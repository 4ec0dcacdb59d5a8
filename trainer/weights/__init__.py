"""What is trained: a LoRA or all weights, teachers made of them, quantised bases, block swap."""
