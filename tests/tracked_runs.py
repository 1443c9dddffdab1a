"""Small runs with tracking services, forked from a process that has imported them once."""

import importlib
import os
import signal
import sys

from conftest import SERVER
from killed_runs import run

PROJECT = "tests"
# What takes seconds to import, some of it when a run begins.
PRELOADED = {
    "tensorboard": ["torch.utils.tensorboard"],
    "wandb": ["wandb", "wandb.sdk.launch"],
    "mlflow": ["mlflow.tracking", "mlflow.store.tracking.sqlalchemy_store", "alembic.command"],
    "trackio": ["gradio_client", "huggingface_hub"],  # itself reads its folder when imported
}


def kill_in_delivery(number):
    """Kill this process once as many services that keep their points have taken some."""
    from dali_rsb.run.trackers.feed import _ServiceThread

    left, deliver = [number], _ServiceThread._deliver

    def delivered(self, notice):
        before = self._num_sent
        deliver(self, notice)
        if not self._kind.is_live and before == 0 < self._num_sent:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    _ServiceThread._deliver = delivered


class TrackedRuns:
    """Starts runs that report to services, all of them to one folder of local files.

    Args:
        recipe: configuration file of the runs.
        store: folder of the services' files.
        services: their names.
    """

    def __init__(self, recipe, store, services):
        self._recipe = recipe
        self._overrides = [
            f"tracking.trackers=[{','.join(services)}]",
            f"tracking.dir={store}",
            f"tracking.project={PROJECT}",
            "tracking.mode=offline",
            "tracking.tags=[first, second]",
        ]
        self._connection, theirs = SERVER.Pipe()
        self._process = SERVER.Process(target=_fork_runs, args=(theirs, services))
        self._process.start()

    def start(self, folder, prepare=None):
        """The process number of a new run, which `prepare` has prepared."""
        self._connection.send(("start", (self._recipe, folder, prepare, self._overrides)))
        return self._connection.recv()

    def end(self, pid):
        """Wait for a run; its exit code, negative for a signal."""
        self._connection.send(("wait", pid))
        assert self._connection.poll(120), "does not end"
        return self._connection.recv()

    def close(self):
        self._connection.send(("close", None))
        self._process.join(60)


def _fork_runs(connection, services):
    for service in services:
        for module in PRELOADED[service]:
            importlib.import_module(module)
    while True:
        what, argument = connection.recv()
        if what == "close":
            return
        if what == "wait":
            connection.send(os.waitstatus_to_exitcode(os.waitpid(argument, 0)[1]))
            continue
        pid = os.fork()
        if pid == 0:
            _carry_out(*argument)
        connection.send(pid)


def _carry_out(*arguments):
    code = 1
    try:
        run(*arguments)
        code = 0
    except SystemExit as error:
        code = error.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
