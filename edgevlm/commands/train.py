"""`edgevlm train`: teach a vision-language model with the user's data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgevlm.commands.arguments import check_model, given
from edgevlm.errors import EdgeVLMError, install_hint
from edgevlm.io.text import shell_word

if TYPE_CHECKING:
    from edgevlm.train.options import TrainOptions


def training_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that `train` and `distill` share, in the order of the help."""
    options = [
        click.option("--data", required=True, metavar="DATA", help="A Scenes folder, or a .jsonl or .json file."),
        click.option("-o", "--out", required=True, metavar="DIR", help="The folder of the trained model."),
        click.option("--processor", metavar="BASE",
                     help="Take tokenizer and processor from here, for weights saved alone."),
        click.option("--images", metavar="DIR", help="Where image paths start.  [default: beside the data]"),
        click.option("--skip-bad", is_flag=True, help="Leave bad records out, and count them."),
        click.option("--train", "parts", metavar="P[,P...]", help="vision, projector, decoder: what changes."),
        click.option("--epochs", type=float, default=1.0, show_default=True, help="Passes over the data."),
        click.option("--steps", type=int, help="Optimizer steps, instead of epochs."),
        click.option("--batch", type=int, default=8, show_default=True, help="Examples per process at a time."),
        click.option("--accumulate", type=int, default=1, show_default=True, help="Batches per step."),
        click.option("--learning-rate", type=float, metavar="R", help="The highest rate.  [default: the stage's]"),
        click.option("--encoder-rate", type=float, default=1.0, show_default=True,
                     help="The encoder's share of the learning rate."),
        click.option("--warmup", type=float, default=0.03, show_default=True, help="Share of the steps."),
        click.option("--weight-decay", type=float, default=0.0, show_default=True),
        click.option("--optimizer", default="adamw", show_default=True, metavar="[adamw|muon]",
                     help="muon: for fresh weights, at rates like 2e-3."),
        click.option("--bf16", is_flag=True, help="Compute in bfloat16; weights stay float32."),
        click.option("--gradient-checkpointing", is_flag=True, help="Less memory, a third more time."),
        click.option("--max-length", type=int, metavar="N", help="Longest dialogue in tokens."),
        click.option("--max-tiles", type=int, metavar="N", help="Most tiles per picture."),
        click.option("--tiled", default=0.0, show_default=True, metavar="SHARE",
                     help="Cut a share of the pictures into tiles, for a model whose own rule is one tile."),
        click.option("--save-every", type=int, default=200, show_default=True, help="Steps between checkpoints."),
        click.option("--workers", type=int, default=0, show_default=True, help="Processes that read pictures."),
        click.option("--cpu", is_flag=True, help="Leave GPUs alone."),
        click.option("--seed", type=int, default=0, show_default=True),
        click.option("--force", is_flag=True, help="Replace a trained model at DIR, once the new one is complete."),
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def common(**values: Any) -> dict[str, Any]:
    """The shared options as TrainOptions takes them."""

    parts = values.pop("parts")
    values["train"] = tuple(part.strip() for part in parts.split(",")) if parts else ()
    for name in ("data", "out"):
        values[name] = Path(values[name])
    values["images"] = Path(values["images"]) if values["images"] else None
    return values


def need_training() -> None:
    """Raise EdgeVLMError where a package of the extra `train` is missing."""
    import importlib.util
    import warnings

    for package in ("torch", "transformers", "accelerate", "matplotlib", "tensorboard"):
        if importlib.util.find_spec(package) is None:
            raise EdgeVLMError(f"Training needs the package {package}: {install_hint('train')}.")
    warnings.simplefilter("ignore", FutureWarning)  # of peft and trl about transformers 6


@click.command()
@click.argument("model")
@click.option(
    "--stage",
    default="instruct",
    show_default=True,
    metavar="[align|instruct|preference]",
    help="Projector alone; projector and decoder; or which of two answers is better.",
)
@training_options
@click.option("--per-question", is_flag=True, help="Every question counts the same, not every token of an answer.")
@click.option("--lora", type=int, metavar="R", help="Train an adapter of this rank instead of the weights.")
@click.option("--4bit", "four_bit", is_flag=True, help="With --lora: keep the base in 4 bits (QLoRA).")
@click.option("--beta", type=float, default=0.1, show_default=True,
              help="Preference: how closely to stay with the model as it was.")  # fmt: skip
def train(
    model: str, stage: str, lora: int | None, four_bit: bool, beta: float, per_question: bool, **shared: Any
) -> None:
    """Train MODEL on pictures and conversations.

    MODEL is a checkpoint folder, a Hub id (owner/name) or 'default'. A run that was stopped goes on with the same
    command. Many GPUs or machines: put `accelerate launch -m` before `edgevlm train ...`. The folder of the
    trained model is the only line on standard output.
    """
    need_training()
    check_model(model)
    if stage != "preference" and given("beta"):
        raise EdgeVLMError("--beta is for --stage preference: leave it out.")
    from edgevlm.io.console import note, progress_bar, write
    from edgevlm.train.options import TrainOptions
    from edgevlm.train.run import train as run

    options = TrainOptions(
        model=model, stage=stage, lora=lora, four_bit=four_bit, beta=beta, per_question=per_question, **common(**shared)
    )
    with progress_bar() as progress:
        out = run(options, progress, note)
    if out is not None:  # None: the main process prints it
        note(f"\n{advice(options)}")
        write(str(out))


def advice(options: TrainOptions) -> str:
    """What a finished run says at its end: the next command, and why there is none where no export takes the model."""
    from edgevlm.train.run import refusal

    model = options.out if options.lora is None else Path(options.model)
    if model.is_dir() and (options.lora is not None or options.stage != "align") and (reason := refusal(model)):
        return f"{reason} Training can go on with it: edgevlm train {shell_word(str(model))}"
    return f"Next: {next_step(options)}"


def next_step(options: TrainOptions) -> str:
    """The command that goes on from a finished run."""
    words = ["edgevlm", "export", str(options.out), "-o", f"{options.out}-bundle"]
    if options.lora is not None:
        words[2:3] = [options.model, "--adapter", str(options.out)]
        words += ["--processor", options.processor] if options.processor else []
    elif options.stage == "align":
        words = ["edgevlm", "train", str(options.out), "--stage", "instruct", "--data", str(options.data)]
        words += ["-o", f"{options.out}-instruct"]
    return " ".join(map(shell_word, words))
