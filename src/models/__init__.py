"""Models that transformers lacks. They import torch, transformers and the standard library, nothing of the project."""
