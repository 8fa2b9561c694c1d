"""Rendezvous: read torchrun's environment variables and meet the other ranks in one store."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist

SHARED_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
"""Environment variable of torchrun: 1 makes each attempt use a new store."""


class StartError(Exception):
    """The processes cannot form a process group, because of how they were started."""


@dataclass(frozen=True)
class Launch:
    """What torchrun says about this process, from its environment variables."""

    rank: int
    world_size: int
    world_size_here: int
    host: str
    port: int
    launcher_store: bool
    """The launcher hosts the store, which outlives the processes"""
    restarts: int
    """Maximum number of restarts"""
    attempt: int
    """Number of restarts so far"""

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> "Launch":
        """Read the environment variables. Raises StartError for missing ones."""
        try:
            world_size = int(environment["WORLD_SIZE"])
            return cls(
                rank=int(environment["RANK"]),
                world_size=world_size,
                world_size_here=int(environment.get("LOCAL_WORLD_SIZE", "1")),
                host=environment["MASTER_ADDR"],
                port=int(environment["MASTER_PORT"]),
                launcher_store=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
                restarts=int(environment.get("TORCHELASTIC_MAX_RESTARTS", "0")),
                attempt=int(environment.get("TORCHELASTIC_RESTART_COUNT", "0")),
            )
        except KeyError as error:
            raise StartError(
                f"WORLD_SIZE is set in the environment, but {error} is not: start several processes with torchrun, or "
                "unset WORLD_SIZE for one"
            ) from error

    @property
    def on_one_machine(self) -> bool:
        return self.world_size_here == self.world_size

    def meet(self, timeout: float) -> tuple[dist.Store, tuple[str, ...]]:
        """Meet all ranks: returns the shared store and the host name of each rank. Raises StartError."""
        if self.launcher_store and self.restarts > 0 and not self.on_one_machine:
            raise StartError(
                f"torchrun --max-restarts={self.restarts} on several machines: restarted processes would find the "
                f"addresses of dead ones in its store, and hang. Set {SHARED_STORE}=1 for torchrun on every "
                "machine, with --rdzv-backend=c10d (docs/cluster.md); or drop --max-restarts"
            )
        # On several machines, machines may count the attempts differently.
        prefix = f"attempt{self.attempt}" if self.on_one_machine else "attempt"
        store = dist.PrefixStore(prefix, self._connect(timeout))
        if store.add(f"seat{self.rank}", 1) > 1:
            raise StartError(
                f"the store at {self.host}:{self.port} already has a process {self.rank}, of another run or a "
                f"failed attempt. Choose another port, or set {SHARED_STORE}=1 before torchrun"
            )
        store.set(f"pulse{self.rank}", "")
        store.set(f"host{self.rank}", socket.gethostname())
        keys = [f"host{rank}" for rank in range(self.world_size)]
        try:
            store.wait(keys, timedelta(seconds=timeout))
        except dist.DistStoreError as error:
            missing = [rank for rank, key in enumerate(keys) if not store.check([key])]
            raise StartError(
                f"of {self.world_size} processes {missing} did not join {self.host}:{self.port} within {timeout:g} s "
                "(runtime.start_timeout); look at their output, and at the firewall (docs/cluster.md)"
            ) from error
        return store, tuple(store.get(key).decode() for key in keys)

    def _connect(self, timeout: float) -> dist.Store:
        holds_it = self.rank == 0 and not self.launcher_store
        try:
            return dist.TCPStore(
                self.host,
                self.port,
                is_master=holds_it,
                timeout=timedelta(seconds=timeout),
                wait_for_workers=False,
                multi_tenant=True,
            )
        except dist.DistError as error:
            reason = str(error).splitlines()[0]
            if holds_it:
                raise StartError(
                    f"cannot bind port {self.port} ({reason}); if another run uses it, choose another "
                    "--master-port, or let torchrun choose: --standalone"
                ) from error
            raise StartError(
                f"no answer from {self.host}:{self.port} within {timeout:g} s (runtime.start_timeout; {reason}): is "
                "process 0 running, is the name right, does the firewall let the port through (docs/cluster.md)?"
            ) from error
