"""`ray-jobs completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that makes a shell complete `ray-jobs` command lines.

    \b
    bash:  ray-jobs completion bash > ~/.local/share/bash-completion/completions/ray-jobs
    zsh:   ray-jobs completion zsh > "${fpath[1]}/_ray-jobs"
    fish:  ray-jobs completion fish > ~/.config/fish/completions/ray-jobs.fish
    """
    completer = get_completion_class(shell)
    assert completer is not None, "the choice names only shells that click knows"
    root = ctx.find_root().command
    click.echo(completer(root, {}, "ray-jobs", "_RAY_JOBS_COMPLETE").source())
