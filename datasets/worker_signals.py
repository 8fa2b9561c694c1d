"""Loader workers outlive a signal to the whole job: the training process needs them until its step is done."""

import os
import signal
import threading


def leave_signals_to_parent(_: int) -> None:
    """`worker_init_fn` of a loader: SIGINT and SIGHUP are ignored, SIGTERM too unless the parent sent it.

    Clusters and terminals signal every process of a job. Workers end when their parent closes the loader or dies.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_obey_parent, daemon=True).start()


def _obey_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
