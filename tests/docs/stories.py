"""Follow the commands and programs of a page, one after the other, on miniatures.

What is replaced stands here: encoders, lengths and sizes.
"""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from anomalib.cli.cli import AnomalibCLI
from every_model import ROWS
from run_by import run_by

from anomalib_defend import commands
from documents import Command, blocks, command_lines

TRAINER = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.enable_progress_bar", "false"]
DATA = ["--data.num_workers", "0"]
FEW = ["--data.max_train_images", "40", "--data.max_test_images", "40"]
THE_PAGES = {"outlier_dir", "seed"}  # what a page says about these is right for a miniature, too
PYTHON = {
    "Defend(seed=0)": "Defend('vit_digits_patch8_96', seed=0, image_size=32, dense_epochs=0, distill_epochs=1)",
    'ObjectPrototypes("tf_efficientnet_lite2.in1k"': "ObjectPrototypes('vit_digits_patch8_96', image_size=32",
    "Engine()": "Engine(accelerator='cpu', devices=1)",
    '["dog", "cat"])': '["dog", "cat"], num_workers=0)',
}


def is_followed(command: Command) -> bool:
    """Whether a story runs it: it stands in a block of a page that trains, exports or scores with `anomalib`."""
    return (
        not command.inline
        and not command.needs
        and command.words[0] in {"anomalib", "anomalib-defend"}
        and command.document in STORIES
    )


STORIES = {
    command.document
    for command in command_lines()
    if command.words[0] == "anomalib" and not command.inline and not command.needs and not run_by(command)
}


def small(model: str) -> list[str]:
    """Arguments of `train` and `fit` that come last, and win."""
    if model == "Padim":
        return ["--model.pre_trained", "false"]
    arguments = next(row.arguments for row in ROWS if row.name == model)
    if model == "Defend":
        arguments = {"attention_block": None, **arguments}  # a page's is of a deeper encoder
    return [
        word
        for name, value in arguments.items()
        if name not in THE_PAGES
        for word in (f"--model.{name}", value if isinstance(value, str) else json.dumps(value))
    ]


def model_of(arguments: list[str]) -> str:
    if "--model" in arguments:
        return arguments[arguments.index("--model") + 1]
    config = Path(arguments[arguments.index("--config") + 1])
    return str(yaml.safe_load(config.read_text())["model"]["class_path"]).rpartition(".")[2]


def follow(command: Command, folder: Path) -> None:
    """Run a command; `model.ckpt` is the last checkpoint of its model, as the pages have it."""
    program, *arguments = command.words
    if any(argument.endswith("help") for argument in arguments):
        with pytest.raises(SystemExit, match="0"):
            commands.main(arguments) if program == "anomalib-defend" else AnomalibCLI(arguments)
    elif program == "anomalib-defend":
        assert commands.main(arguments) == 0
    else:
        action, model = arguments[0], model_of(arguments)
        trains = action == "train" or (action == "fit" and "--ckpt_path" not in arguments)
        reads = any(argument.startswith(("--data", "--config")) for argument in arguments)
        if "--ckpt_path" in arguments:
            shutil.copy(folder / f"{model}.ckpt", folder / "model.ckpt")
        run = AnomalibCLI([*arguments, *([*small(model), *FEW] if trains else []), *(DATA if reads else []), *TRAINER])
        if trains:
            shutil.copy(run.engine.best_model_path, folder / f"{model}.ckpt")
            shutil.copy(run.engine.best_model_path, folder / "model.ckpt")


def follow_all(document: str, folder: Path) -> list[str]:
    """Run all commands of a page, and tell which."""
    followed = [command for command in command_lines() if command.document == document and is_followed(command)]
    for command in followed:
        follow(command, folder)
    return [command.words[1] for command in followed]


def run_programs(document: str) -> int:
    """Run the Python of a page, and count the programs."""
    programs = [block.code for block in blocks() if block.document == document and block.language == "python"]
    for program in programs:
        code = program
        for long, short in PYTHON.items():
            code = code.replace(long, short)
        exec(compile(code, document, "exec"), {})  # noqa: S102
    return len(programs)
