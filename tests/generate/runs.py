"""Runs of the programs of stage 1b, for tests of kills, devices and processes."""

from generate import prompts
from gptfl_jax import artifacts, launch

from ..programs import Programs, in_two_processes

# Batches of one on one device: the samples that all others are compared with.
ALONE = ("--cpu_devices=1", "--config.generate.batch_size=1")


class Runs:
    """Starts a program of stage 1b in processes of its own."""

    def __init__(self, module, folder, config_file, repository):
        self.module, self.repository = module, repository
        self.folder, self.config_file = folder, config_file
        self.prompts = folder / "prompts"
        launch.launch(
            prompts.run,
            ("data", "prompts"),
            [f"--config={config_file}", f"--workdir={self.prompts}"],
        )
        self.log = folder / "log"
        self._programs = Programs(module, repository, self.log)

    def workdir(self, name):
        workdir = self.folder / name
        artifacts.write_bytes(
            workdir / "prompts.json", (self.prompts / "prompts.json").read_bytes()
        )
        return workdir

    def arguments(self, workdir, *extra):
        return [f"--config={self.config_file}", f"--workdir={workdir}", *extra]

    def __call__(self, workdir, *extra, **options):
        return self._programs.run(*self.arguments(workdir, *extra), **options)

    def complete(self, workdir, *extra):
        self._programs.complete(*self.arguments(workdir, *extra))

    def both(self, workdir, *extra):
        """Two processes of one run: their exit statuses and what they printed."""
        arguments = self.arguments(workdir, *extra)
        return in_two_processes(self.module, self.repository, *arguments)

    def close(self):
        self._programs.close()


def content(workdir):
    folder = workdir / "synthetic"
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "run.json"
    }
