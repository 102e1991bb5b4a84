"""The flags about several machines."""

from dataclasses import dataclass

from common.errors import UserError
from common.flags import Range, option
from common.processes import this_process

RAY_RANGES = {"workers": Range(1), "cpus_per_worker": Range(1), "shard_size": Range(1)}


@dataclass
class RayFlags:
    """Of what can be shared by Ray (requirements-ray.txt)."""

    ray: str | None = option(
        None,
        "share the work by Ray: auto (the cluster that this machine belongs to, else this machine alone), or the "
        "address of a cluster, HOST:PORT; default: this process does it",
    )
    workers: int | None = option(None, "with --ray: models at a time; default: as many as the cluster has room for")
    cpus_per_worker: int | None = option(
        None, "with --ray: cores of a model, on no GPU; default: a GPU each, and where there is none a machine"
    )
    shard_size: int = option(1000, "what is handed out, and kept, at a time: records with --ray, documents of a corpus")

    def check_ray(self) -> None:
        """UserError for flags that do not go together."""
        for name in ("workers", "cpus_per_worker"):
            if getattr(self, name) is not None and not self.ray:
                raise UserError(
                    f"--{name} without --ray: there is one model, in this process; drop it, or add --ray auto"
                )
        if not self.ray:
            return
        for flag, given in (
            ("--engine vllm", self.engine == "vllm"),
            (f"--device_map {self.device_map}", self.device_map),
            ("torchrun", this_process().count > 1),
        ):
            if given:
                raise UserError(f"--ray {self.ray} and {flag} do not go together: Ray hands out the GPUs; drop one")
        if self.device not in (None, "cpu"):
            raise UserError(f"--ray {self.ray} and --device {self.device}: Ray hands out the GPUs; drop --device")
