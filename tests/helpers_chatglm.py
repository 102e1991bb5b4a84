"""One golden set of ChatGLM, as several test files use it."""

import json

import numpy as np
import torch

from models.chatglm.modeling import ChatGLMForConditionalGeneration


class Golden:
    """One set: its arrays as tensors, its json, its model in float32."""

    def __init__(self, folder):
        self.folder = folder
        arrays = np.load(folder / "golden.npz")
        self.arrays = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        self.json = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
        self.model = ChatGLMForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()

    def __getitem__(self, name):
        return self.arrays[name]


def near(found, expected, atol=2e-4):
    torch.testing.assert_close(found.detach(), expected, rtol=0, atol=atol)
