"""Rounds of federated averaging in plain torch, clients one after another.

  python -m benchmarks.peers.torch_loop --workload w3 --data DATA --workers 2

is what upstream GPT-FL does in each of its processes: load the server's weights, train
an epoch of SGD over a `DataLoader`, add to a running mean. The clients of a round are
dealt to the workers, largest first. With `--device cuda` all examples lie on the GPU,
where a `DataLoader`, which collates them one by one, would be slower than the training:
batches are gathered there by a shuffled index. Needs torch and numpy, nothing of
gptfl_jax, and prints the line of JSON of `benchmarks.fl_round`.
"""

from benchmarks import measure  # First: it starts the clock.

# ruff: isort: split
import argparse
import json
import os
import pathlib

import numpy as np
import torch
import torch.multiprocessing
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.peers import networks


class Trainer:
    """The clients' examples and the network of one worker."""

    def __init__(
        self,
        workload: str,
        data: pathlib.Path,
        lr: float | None = None,
        device: str = "cpu",
    ):
        self.device = torch.device(device)
        with np.load(data / f"{workload}.npz") as file:
            self.x, self.y, self.offsets = file["x"], file["y"], file["offsets"]
            self.schedule = file["schedule"]
            self.lr = lr or float(file["lr"])
            batch_size = int(file["batch"])
            model = networks.make(workload, int(file["num_classes"]))
            self.model = model.to(self.device)
        self.sizes = np.diff(self.offsets)
        self.loss = torch.nn.CrossEntropyLoss()
        inputs = networks.channels_first(self.x).to(self.device)
        labels = torch.from_numpy(self.y).long().to(self.device)
        loader = DataLoader if self.device.type == "cpu" else Gathered
        self.loaders = [
            loader(
                TensorDataset(inputs[start:stop], labels[start:stop]),
                batch_size,
                shuffle=True,
            )
            for start, stop in zip(self.offsets, self.offsets[1:], strict=False)
        ]

    def train(self, weights: dict, clients: list[int], total: int) -> dict:
        """Sum of the trained weights, each times the client's share of the rows."""
        weights = {k: v.to(self.device) for k, v in weights.items()}
        sums = {k: torch.zeros_like(v) for k, v in weights.items()}
        for client in clients:
            self.model.load_state_dict(weights, strict=False)
            optimizer = torch.optim.SGD(self.model.parameters(), lr=self.lr)
            for inputs, labels in self.loaders[client]:
                optimizer.zero_grad()
                self.loss(self.model(inputs), labels).backward()
                optimizer.step()
            trained = self.model.state_dict()
            for name in sums:
                sums[name].add_(trained[name], alpha=self.sizes[client] / total)
        return {name: value.cpu() for name, value in sums.items()}

    @torch.no_grad()
    def evaluate(self, weights: dict) -> float:
        """Mean loss on 1,000 fixed rows."""
        rows = np.random.default_rng(0).choice(len(self.y), 1000, replace=False)
        self.model.load_state_dict(weights, strict=False)
        self.model.eval()
        losses = [
            self.loss(
                self.model(networks.channels_first(self.x[part]).to(self.device)),
                torch.from_numpy(self.y[part]).long().to(self.device),
            ).item()
            for part in np.split(rows, 10)
        ]
        self.model.train()
        return float(np.mean(losses))


class Gathered:
    """A `DataLoader` of tensors on a device, a gather a batch."""

    def __init__(self, examples: TensorDataset, batch_size: int, shuffle: bool):
        self.tensors, self.batch_size, self.shuffle = (
            examples.tensors,
            batch_size,
            shuffle,
        )

    def __iter__(self):
        """Batches of one epoch."""
        first = self.tensors[0]
        draw = torch.randperm if self.shuffle else torch.arange
        order = draw(len(first), device=first.device)
        for rows in order.split(self.batch_size):
            yield tuple(tensor[rows] for tensor in self.tensors)


_trainer: Trainer


def _start(*arguments) -> None:
    global _trainer
    torch.set_num_threads(1)
    _trainer = Trainer(*arguments)


def _train(job: tuple) -> tuple[dict, int, int]:
    """The sum, and which process took how much of the GPU so far."""
    part = _trainer.train(*job)
    on_gpu = _trainer.device.type == "cuda"
    return part, os.getpid(), torch.cuda.max_memory_allocated() if on_gpu else 0


def main() -> None:
    """Runs the rounds and prints the line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workload", choices=networks.WORKLOADS, required=True)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--rounds", type=int, default=5, help="timed, after round 0")
    parser.add_argument("--lr", type=float, help="instead of the workload's")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--in-turn", action="store_true", help="after round 0, wait for a line of stdin"
    )
    arguments = parser.parse_args()
    memory = measure.Memory()
    torch.manual_seed(0)
    of_trainer = arguments.workload, arguments.data, arguments.lr, arguments.device
    trainer, count = Trainer(*of_trainer), arguments.workers
    context = torch.multiprocessing.get_context("spawn")
    rounds, peak_bytes = measure.Rounds(), {}
    with context.Pool(count, _start, of_trainer) as pool:
        # Counters of batches are no weights: they are integers.
        first = weights = {
            name: value.cpu().clone()
            for name, value in trainer.model.state_dict().items()
            if value.is_floating_point()
        }
        for cohort in trainer.schedule[: arguments.rounds + 1]:
            rounds.begin()
            total = int(trainer.sizes[cohort].sum())
            order = sorted(cohort, key=lambda c: trainer.sizes[c], reverse=True)
            jobs = [(weights, order[i::count], total) for i in range(count)]
            parts, processes, peaks = zip(*pool.map(_train, jobs, 1), strict=True)
            peak_bytes |= dict(zip(processes, peaks, strict=True))
            weights = {name: sum(part[name] for part in parts) for name in weights}
            rounds.end()
            if arguments.in_turn and len(rounds.wall_s) == 1:
                measure.wait_for_turn()
        report = measure.report(
            "torch_loop",
            arguments.workload,
            rounds,
            memory,
            trainer.sizes[trainer.schedule],
            loss_before=round(trainer.evaluate(first), 4),
            loss_after=round(trainer.evaluate(weights), 4),
            torch=torch.__version__,
            workers=count,
            device=arguments.device,
            device_mb=round(sum(peak_bytes.values()) / 2**20) or None,
        )
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
