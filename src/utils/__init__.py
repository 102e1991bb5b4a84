import logging

# Without a GPU it warns at import that its CPU kernels are missing; nothing here uses them.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
