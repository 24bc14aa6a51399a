"""The tables of the report, for the page and for a terminal."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from federated import pgf
from gptfl_jax import planning


class Table(NamedTuple):
    """Numbers as a reader sees them."""

    header: list[str]
    lines: list[list[str]]
    """A cell a column; the first is the method's name."""

    def text(self, width: int) -> str:
        """The table as aligned text, for a terminal of a width.

        Columns that hold nothing are left out. Those that do not fit follow below, the
        first column before them again.
        """
        first, *others = zip(self.header, *self.lines, strict=True)
        names = _aligned(first, str.ljust)
        parts: list[list[list[str]]] = []
        left = 0
        for column in others:
            if any(cell != "-" for cell in column[1:]):
                cells = _aligned(column, str.rjust)
                left -= 2 + len(cells[0])
                if left < 0:
                    parts.append([names])
                    left = width - len(names[0]) - 2 - len(cells[0])
                parts[-1].append(cells)
        return "\n\n".join(map(_part, parts))

    def latex(self) -> str:
        r"""The table as a `tabular` of LaTeX, with the rules of booktabs."""
        rows = [" & ".join(map(pgf.escaped, line)) for line in self.lines]
        columns = "l" + "r" * (len(self.header) - 1)
        return "\n".join(
            [
                r"% \usepackage{booktabs} in the preamble, \input{<this file>} here.",
                rf"\begin{{tabular}}{{{columns}}}",
                r"\toprule",
                " & ".join(map(pgf.escaped, self.header)) + r" \\",
                r"\midrule",
                *(rf"{row} \\" for row in rows),
                r"\bottomrule",
                r"\end{tabular}",
                "",
            ]
        )


def _aligned(
    column: Sequence[str], to_one_side: Callable[[str, int], str]
) -> list[str]:
    width = max(map(len, column))
    return [to_one_side(cell, width) for cell in column]


def _part(columns: Sequence[Sequence[str]]) -> str:
    head, *lines = ["  ".join(line).rstrip() for line in zip(*columns, strict=True)]
    return "\n".join([head, "-" * len(head), *lines])


def of_methods(rows: Sequence[dict[str, Any]], targets: Sequence[float]) -> Table:
    """Accuracy and F1 of each method, and what it took to reach the targets."""
    labels = [f"{100 * target:g}" for target in targets]
    header = ["method", "accuracy %", "macro F1 %"]
    header += [f"rounds to {label} %" for label in labels]
    header += [f"MB to {label} %" for label in labels]
    body = []
    for row in rows:
        seeds = len(row["seeds"])
        cells = [
            row["name"],
            percent(row["accuracy_mean"], row["accuracy_std"], seeds),
            percent(row["macro_f1_mean"], row["macro_f1_std"], seeds),
        ]
        for label in labels:
            rounds = row[f"rounds_to_{label}"]
            if rounds is not None:
                cells.append(f"{rounds:.1f}".removesuffix(".0"))
            elif row["algorithm"] == "none":
                cells.append("-")
            else:
                reached = row[f"runs_reaching_{label}"]
                some = f" ({reached} of {row['runs']} did)" if reached else ""
                cells.append(f"> {row['rounds']}{some}")
        cells += [_megabytes(row[f"bytes_to_{label}"]) for label in labels]
        body.append(cells)
    return Table(header, body)


def of_differences(found: Mapping[str, dict[str, Any]]) -> Table | None:
    """What `differences.of_methods` has found; None where nothing is compared."""
    if not found:
        return None

    def points(value: float) -> str:
        return f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}")

    def chance(p: float | None) -> str:
        if p is None:
            return "-"
        return "< 0.001" if p < 0.001 else f"{p:.3f}"

    body = []
    for name, row in found.items():
        interval = "-"
        if row["low"] is not None:
            interval = f"{points(row['low'])} to {points(row['high'])}"
        of = points(row["mean"]), interval, chance(row["p"]), chance(row["p_holm"])
        body.append([name, row["to"], *of, str(len(row["seeds"]))])
    measured = ["points", "95 % interval", "p", "p (Holm)", "seeds"]
    return Table(["difference of", "less", *measured], body)


def of_turns(rows: Sequence[dict[str, Any]]) -> Table | None:
    """Accuracy in each turn; None without turns."""
    turns = list(dict.fromkeys(turn for row in rows for turn in row["by_turn"]))
    if not turns:
        return None

    def cell(numbers: dict[str, Any] | None) -> str:
        if numbers is None:
            return "-"
        seeds = len(numbers["seeds"])
        return percent(numbers["accuracy_mean"], numbers["accuracy_std"], seeds)

    body = [
        [row["name"], *(cell(row["by_turn"].get(t)) for t in turns)] for row in rows
    ]
    return Table(["accuracy % in turn", *turns], body)


def of_clients(rows: Sequence[dict[str, Any]]) -> Table:
    """What was measured about the clients.

    Columns that no row has a number for are left out.
    """

    def number(field: str) -> Callable[[dict[str, Any]], str]:
        return lambda row: significant(row[field])

    def norm(row: dict[str, Any]) -> str:
        mean = number("update_norm_mean")(row)
        return mean if mean == "-" else f"{mean} ± {number('update_norm_std')(row)}"

    def accuracy(what: str) -> Callable[[dict[str, Any]], str]:
        fields = f"client_accuracy_{what}", f"personalised_accuracy_{what}"

        def cell(row: dict[str, Any]) -> str:
            if row[fields[0]] is None:
                return "-"
            return " → ".join(f"{100 * row[field]:.1f}" for field in fields)

        return cell

    def rate(field: str) -> Callable[[dict[str, Any]], str]:
        return lambda row: "-" if row[field] is None else f"{row[field]:g}"

    columns = {
        "client rate": rate("client_learning_rate"),
        "server rate": rate("server_learning_rate"),
        "diversity": number("gradient_diversity_mean"),
        "inverse": number("inverse_gradient_diversity_mean"),
        "cosine": number("cosine_mean"),
        "update norm": norm,
        "drift": number("drift"),
        "clients' accuracy %": accuracy("mean"),
        "worst tenth %": accuracy("worst_decile"),
        "MB up": lambda row: _megabytes(row["bytes_up"]),
        "MB down": lambda row: _megabytes(row["bytes_down"]),
        "dropped": lambda row: f"{row['dropped_clients']:,}",
    }
    cells = {name: [cell(row) for row in rows] for name, cell in columns.items()}
    cells = {
        name: column
        for name, column in cells.items()
        if any(cell != "-" for cell in column)
    }
    body = zip((row["name"] for row in rows), *cells.values(), strict=True)
    return Table(["method", *cells], [list(line) for line in body])


def of_cost(rows: Sequence[dict[str, Any]]) -> Table | None:
    """Floating-point operations and bytes of each method; None where none is known."""
    if not any(row["flops_clients"] for row in rows):
        return None

    def flops(value: float | None) -> str:
        return "unknown" if value is None else planning.amount(value)

    parts = ("generation", "stage_2", "clients", "server", "total")
    header = ["cost in FLOPs", *(part.replace("_", " ") for part in parts)]
    body = [
        [
            row["name"],
            *(flops(row[f"flops_{part}"]) for part in parts),
            _megabytes(row["bytes_up"]),
            _megabytes(row["bytes_down"]),
            percent(row["accuracy_mean"], row["accuracy_std"], len(row["seeds"])),
        ]
        for row in rows
    ]
    return Table([*header, "MB up", "MB down", "accuracy %"], body)


def of_starts(rows: Sequence[dict[str, Any]]) -> Table | None:
    """Accuracy by method and start; None unless there are several of both."""
    found = starts_of(rows)
    if found is None:
        return None
    methods, inits, cells = found

    def cell(row: dict[str, Any] | None) -> str:
        if row is None:
            return "-"
        return percent(row["accuracy_mean"], row["accuracy_std"], len(row["seeds"]))

    body = [[name, *(cell(cells.get((name, i))) for i in inits)] for name in methods]
    return Table(["accuracy % from", *inits], body)


def starts_of(
    rows: Sequence[dict[str, Any]],
) -> tuple[list[str], list[str], dict[tuple[str, str], dict[str, Any]]] | None:
    """(methods, starts, row of each pair); None where that is no table.

    It is none where no two methods share a start and no two starts a method, or when
    rows are of several tasks, or a pair has several rows, as with several rates.
    """
    rows = [row for row in rows if row["algorithm"] != "none"]
    pairs = [(row["method"], row["init"]) for row in rows]
    if not pairs or any(row["task"] != rows[0]["task"] for row in rows):
        return None
    methods, inits = (list(dict.fromkeys(of)) for of in zip(*pairs, strict=True))
    crossed = max(len(methods), len(inits)) < len(pairs) and len(methods) > 1
    if len({*pairs}) < len(pairs) or not crossed:
        return None
    return sorted(methods), inits, dict(zip(pairs, rows, strict=True))


def percent(mean: float, std: float, seeds: int) -> str:
    """A share in per cent, with its spread where there are several seeds."""
    spread = f" ± {100 * std:.1f}" if seeds > 1 else ""
    return f"{100 * mean:.1f}{spread}"


def significant(value: float | None) -> str:
    """A number to three significant figures, of all numbers alike."""
    if value is None:
        return "-"
    if abs(value) >= 999.5:
        return f"{value:,.0f}"
    return "0" if value == 0 else f"{value:#.3g}".removesuffix(".")


def _megabytes(count: float | None) -> str:
    return significant(None if count is None else count / 1e6)
