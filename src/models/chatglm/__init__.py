"""ChatGLM-6B (the first generation): importing this package teaches transformers' Auto classes to load it."""

from transformers import AutoConfig, AutoModelForCausalLM

from models.chatglm.configuration import ChatGLMConfig
from models.chatglm.modeling import ChatGLMForConditionalGeneration
from models.chatglm.tokenizer import ChatGLMTokenizer

AutoConfig.register("chatglm", ChatGLMConfig, exist_ok=True)
AutoModelForCausalLM.register(ChatGLMConfig, ChatGLMForConditionalGeneration, exist_ok=True)

__all__ = ["ChatGLMConfig", "ChatGLMForConditionalGeneration", "ChatGLMTokenizer"]
