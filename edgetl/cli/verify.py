"""`edgetl verify`: is every byte of this bundle what its manifest says, and every graph what PyTorch says?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgetl.cli.console import JsonFlag, OutOption, session

if TYPE_CHECKING:
    from rich.console import Console

    from edgetl.bundle import Check

EXAMPLES = "Then send:  edgetl verify models/flowers && rsync -a models/flowers board:"


def verify(
    ctx: typer.Context,
    bundle: Annotated[Path, typer.Argument(help="The bundle folder.", metavar="BUNDLE")],
    as_json: JsonFlag = False,
    out: OutOption = None,
) -> None:
    """Prove a bundle: hashes of all files, parity of each graph on the golden images.

    Exit 0 when everything holds (a bundle with no graph yet too), 1 on any damage.
    """
    with session(ctx, as_json, out) as run:
        from edgetl.bundle import Bundle

        opened = Bundle.open(bundle)
        checks = opened.check_files()
        if all(check.ok for check in checks):
            # Parity reads the files, so it is only asked when they are whole.
            from edgetl.graph import check_parity

            checks += check_parity(opened, run.monitor)
        bad = [check for check in checks if not check.ok]
        result = {"ok": not bad, "checks": [check.as_json() for check in checks]}
        run.done(result, show=lambda console: _show(console, checks))
        if bad:
            run.stderr.print(
                f"error: {len(bad)} of {len(checks)} checks fail: {bad[0].name}: {bad[0].value}; "
                "restore the file, or run the stage that made it again",
                style="bold red",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
            raise typer.Exit(1)


def _show(console: Console, checks: list[Check]) -> None:
    from rich.table import Table

    table = Table(title=f"{sum(c.ok for c in checks)} of {len(checks)} checks hold", title_justify="left")
    for column in ("", "check", "value", "tolerance"):
        table.add_column(column)
    # Whole hashes are one line, not forty: people look for what is wrong and for the parities.
    hashes = [c for c in checks if c.name.startswith("sha256 ") and c.ok]
    if hashes:
        table.add_row("[green]ok[/]", f"sha256 of {len(hashes)} files", "equal", "equal")
    for check in checks:
        if check not in hashes:
            mark = "[green]ok[/]" if check.ok else "[red]FAIL[/]"
            table.add_row(mark, check.name, str(check.value), str(check.tolerance))
    console.print(table)
