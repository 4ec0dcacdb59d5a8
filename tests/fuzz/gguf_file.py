"""A small sound GGUF file, written by hand."""

import struct
from pathlib import Path


def write(path: Path) -> None:
    text = lambda s: struct.pack("<Q", len(s)) + s.encode()
    about = text("general.architecture") + struct.pack("<I", 8) + text("qwen_image")
    about += text("general.file_type") + struct.pack("<II", 4, 1)
    about += text("a.list") + struct.pack("<IIQ", 9, 8, 2) + text("x") + text("y")
    tensors = text("img_in.weight") + struct.pack("<IQQIQ", 2, 32, 2, 0, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 3) + about + tensors
    path.write_bytes(head + b"\0" * (-len(head) % 32) + b"\0" * 256)
