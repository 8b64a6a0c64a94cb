"""`attune feedback ...`."""

import typer

from attune.cli.feedback_export import export_file
from attune.cli.feedback_import import import_file
from attune.cli.receipts import receipts

feedback_app = typer.Typer(help="Feedback: import, export, and what became of it.", no_args_is_help=True)
feedback_app.command("import")(import_file)
feedback_app.command("export")(export_file)
feedback_app.command("receipts")(receipts)
