import logging
import warnings

# Without a GPU bitsandbytes warns at import that its CPU kernels are missing; nothing here uses them.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
# peft asks transformers under a name that newer releases have changed; no user can do anything about it.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)


def _leave_out(logger: str, beginning: str) -> None:
    """Of what a library's logger says, leave out the message that begins so."""
    logging.getLogger(logger).addFilter(lambda record: not record.getMessage().startswith(beginning))


# Without a GPU DeepSpeed, which accelerate imports wherever it is, says so on stdout; our own lines name the device.
_leave_out("DeepSpeed", "Setting accelerator to CPU")
# Old copies of LLaMA say that padding has the id -1. Ids of special tokens come from the tokenizer (tokens/readers.py).
_leave_out("transformers.configuration_utils", "Model config: pad_token_id must be")
_leave_out(
    "transformers.generation.configuration_utils",
    "The following generation flags are not valid and may be ignored: ['pad_token_id']",
)
