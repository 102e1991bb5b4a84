"""Models that transformers lacks. They import torch, transformers and sentencepiece only, nothing of this project."""
