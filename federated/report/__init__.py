"""The report on federated runs: a page, its numbers, and files for a paper.

    python -m federated.report --config=configs/digits.py --workdir=runs/digits

Reads every run under `<workdir>/federated/` (or those named in
`config.report.runs`), takes runs that differ only in their seed together, and
writes into the workdir

- `report.json`: a list of rows, one a method: `name, algorithm, init, seeds,
  accuracy_mean, accuracy_std, macro_f1_mean, rounds_to_90, bytes_to_90, ...`;
- `report.html`: the same numbers as a page with learning curves, what was measured
  about the clients, synthetic examples, the commands and versions. One file, nothing
  loaded from elsewhere;
- `paper/`: each figure as PDF, PGF and PNG, `config.report.figure_width` wide, with
  its fonts inside, and the tables in LaTeX.

The page shows examples of the clients' data, and `paper/` what clients hold, only where
`config.report.private_examples` is set.

How the numbers are taken: accuracy, macro F1 and loss are those of the last evaluated
round, never of the best one, because choosing a round by the test set would flatter
every method. Runs that have not come to their last round are left out; a method that
has no other is marked, and `unfinished` names them. Their spread is the sample standard
deviation over seeds (0 for one seed). Where a method was run in turns
(`config.compare.data`), a seed's number is the mean over its turns, and `by_turn` has
those of each. A seed that lacks a turn which another has is left out, and `partial`
names its runs; a method that lacks one is marked, and compared with others in the turns
of both. A method has reached a target in the first evaluated round whose test
accuracy is at least the target; `rounds_to_90` is the mean over seeds (and turns), null
while any run has not reached 90 %; `runs_reaching_90` have. `bytes_to_90` counts what
went up and down until then. What is measured in a round (gradient diversity and its
inverse, cosine of the clients' updates to their mean, their norms) is the mean over
rounds and seeds; `update_norm_std` is the spread within a round. Drift and the accuracy
of clients are those of the last round that has them; `client_accuracy_worst_decile` is
the mean of the tenth of the clients that fares worst (gptfl_jax/fl/personalisation.py),
and `personalised_*` is after local fine-tuning. What it cost (`flops_generation`,
`flops_stage_2`, `flops_clients`, `flops_server`, `flops_total`) is null where no record
says it; federated/report/cost.py says what is counted. Starting weights that were
trained on synthetic data are a method of their own, `Synthetic only`: no round, no
byte. `difference` is that of the last accuracies between a method and the same one from
scratch, with a confidence interval over seeds (federated/report/differences.py). Only
methods of one `task` are compared: the fields of the data, the partition and the model.
"""

import pathlib
import shutil
import textwrap

from ml_collections import ConfigDict

from federated.report import differences, page, paper, rows, runs, tables
from gptfl_jax import artifacts
from gptfl_jax.launch import launch, prepare
from gptfl_jax.progress import counted

# The tables for a terminal, where more would push these out of sight.
_PRINTED = ("methods", "differences", "turns", "starts")


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Writes report.json, report.html and paper/, and prints the first tables."""
    prepare(config)
    methods = runs.methods_of(runs.load_runs(workdir, config.report.runs))
    start = runs.synthetic_only(methods)
    targets = config.report.targets
    numbers = [
        rows.row_of(method, targets) for method in ([start] if start else []) + methods
    ]
    compared = differences.of_methods(methods)
    numbers = [row | {"difference": compared.get(row["name"])} for row in numbers]
    artifacts.remove_leftovers(workdir)  # of a report that was killed
    artifacts.write_json(workdir / "report.json", numbers)
    shown = {
        "methods": tables.of_methods(numbers, targets),
        "differences": tables.of_differences(compared),
        "turns": tables.of_turns(numbers),
        "starts": tables.of_starts(numbers),
        "cost": tables.of_cost(numbers),
        "clients": tables.of_clients(numbers),
    }
    artifacts.write_text(
        workdir / "report.html", page.render(methods, numbers, shown, config, workdir)
    )
    folder = paper.write(methods, numbers, shown, config, workdir)
    width = shutil.get_terminal_size().columns
    first = (shown[name] for name in _PRINTED)
    print("\n\n".join(table.text(width) for table in first if table is not None))
    settings = page.settings(methods)
    if len(settings) > 1:
        print("\n" + "\n".join(textwrap.fill(line, width) for line in settings))
    for method in methods:
        for each in method.unfinished:
            planned = counted(each.planned, "round")
            left_out = "" if each in method.runs else ", left out of the numbers"
            print(f"{each.folder}: {each.done} of {planned} so far{left_out}")
        for each in method.partial:
            print(
                f"{each.folder}: left out of the numbers, as seed "
                f"{each.config['seed']} has not done all turns"
            )
    print()
    print(f"report   {workdir / 'report.html'}")
    print(f"numbers  {workdir / 'report.json'}")
    print(f"paper    {folder}/")
    preview = workdir / "synthetic" / "preview.png"
    if preview.exists():
        print(f"samples  {preview}")


def main() -> None:
    """Entry point of `python -m federated.report` and `gptfl-report`."""
    launch(run, ("data", "report"))
