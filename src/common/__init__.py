import logging
import warnings

# Without a GPU bitsandbytes warns at import that its CPU kernels are missing; nothing here uses them.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
# peft asks transformers under a name that newer releases have changed; no user can do anything about it.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
