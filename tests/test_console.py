"""What a person sees: the screen of the console scripts, read in a terminal, and what it is made of."""

import builtins
import inspect
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from docstring_parser import parse
from torch.utils.data import DataLoader, Dataset

import anomalib_defend.data
import anomalib_defend.models
from anomalib_defend import Defend, console
from anomalib_defend._autoload import is_console
from anomalib_defend.data.protocol import Annotations, resolve_categories
from anomalib_defend.data.workers import NUM_WORKERS, usable_cores
from anomalib_defend.models.components.arguments import check_choices
from anomalib_defend.nn.score import anomaly_map
from anomalib_defend.suggest import did_you_mean

pty = pytest.importorskip("pty", reason="a pseudo-terminal")

SCRIPT = """
import sys
sys.argv[0] = "/usr/bin/anomalib"
from anomalib_defend._autoload import install
install()
from anomalib.cli.cli import main
sys.exit(main())
"""
WIDTH, HEIGHT = 160, 50
OPTIONS = ["--model.backbone", "vit_digits_patch8_96", "--model.image_size", "32", "--model.dense_epochs", "2"]
OUR_LOG = re.compile(r"^\d\d:\d\d:\d\d (INFO|WARNING) ")
REPOSITORY = Path(__file__).parents[1]


class Screen:
    """What a terminal has received, and what it shows then, from the first line to the last."""

    def __init__(self, command, folder, **environment):
        pyte = pytest.importorskip("pyte")
        process, terminal = pty.fork()
        if process == 0:  # pragma: no cover - another process
            os.chdir(folder)
            source = str(Path(anomalib_defend.__file__).parents[1])
            path = os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])
            size = {"COLUMNS": str(WIDTH), "LINES": str(HEIGHT), "TERM": "xterm-256color"}
            os.execve(command[0], command, {**os.environ, **size, "PYTHONPATH": path, **environment})  # noqa: S606
        self.received = b""
        try:
            while data := os.read(terminal, 65536):
                self.received += data
        except OSError:  # Linux: the process has ended
            pass
        os.close(terminal)
        self.status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        screen = pyte.HistoryScreen(WIDTH, HEIGHT, history=10_000, ratio=1)
        pyte.ByteStream(screen).feed(self.received)
        above = ["".join(row[column].data for column in range(WIDTH)) for row in screen.history.top]
        self.lines = [line.rstrip() for line in [*above, *screen.display] if line.strip()]

    def __str__(self):
        return "\n".join(self.lines)


def test_what_the_terminal_cannot_show_ends_no_command():
    code = "from anomalib_defend import console; console.install(); print('Gr\\xf6\\xdfe St\\udcfcck')"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(REPOSITORY / "src")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("Gr\\xf6\\xdfe St\\udcfcck\n", 0), done.stderr


@pytest.fixture
def terminal(tmp_path, voc):
    """``anomalib train --model Defend ... ARGUMENTS`` in a terminal; later options win."""

    def run(*arguments, environment=None, options=OPTIONS):
        data = ["--data", "SemanticVOC", "--data.root", voc, "--data.category", "dog", "--data.num_workers", "0"]
        trainer = ["--model.distill_epochs", "2", "--trainer.accelerator", "cpu", "--trainer.devices", "1"]
        command = [sys.executable, "-c", SCRIPT, "train", "--model", "Defend", *options, *data, *trainer, *arguments]
        return Screen([str(word) for word in command], tmp_path, **(environment or {}))

    return run


@pytest.fixture
def ours(tmp_path):
    """``anomalib-defend ARGUMENTS`` in a terminal."""

    def run(*arguments, **environment):
        return Screen([sys.executable, "-m", "anomalib_defend", *arguments], tmp_path, **environment)

    return run


# ------------------------------------------------------------------------------------------------- in a terminal


def test_a_training(terminal, tmp_path):
    screen = terminal()
    assert screen.status == 0
    ours = [line for line in screen.lines if OUR_LOG.match(line)]
    assert len(ours) == len(set(ours))
    for message in ("Training 4 epochs: ", "seed=", "Teacher cache: ", "The teacher has seen the ", "Trained: "):
        assert str(screen).count(message) == 1, message
    # one bar, which the last epoch leaves behind
    bars = [line for line in screen.lines if re.search(r"━.* left", line)]
    assert len(bars) == 1
    assert bars[0].startswith("Stage 2/2 distillation, epoch 2/2 ")
    assert " 0:00:00 left distill_loss: " in bars[0]
    assert "dense_loss" not in bars[0]
    for shown in ("Stage 1/2 dense fine-tuning, epoch 1/2", "Stage 2/2 distillation, epoch 1/2"):
        assert shown.encode() in screen.received
    # what the bar says is not logged again
    assert [line for line in ours if "epoch 2 of 2" in line] == []
    assert "Traceback" not in str(screen)
    # below the metrics: where everything is, and the next command; a line may be longer than the screen is wide
    metrics = max(number for number, line in enumerate(screen.lines) if "image_AUROC" in line)
    *_, pictures, table, checkpoint, following = re.split(
        r"\d\d:\d\d:\d\d INFO    ", "".join(f"{line:{WIDTH}}" for line in screen.lines[metrics:])
    )
    run = tmp_path / "results" / "Defend" / "SemanticVOC" / "dog" / "v0"
    ckpt = run / "weights" / "lightning" / "model.ckpt"
    assert pictures.split() == ["Pictures:", str(run / "images")]
    assert table.split() == ["Table:", str(run / "test.csv")]
    assert checkpoint.split() == ["Checkpoint:", str(ckpt)]
    assert "".join(following.split()) == (
        f"Next:anomalibpredict--dataPredictFolder--data.rootFOLDER_OF_YOUR_IMAGES--modelDefend--ckpt_path{ckpt}"
    )
    assert ckpt.is_file()
    assert (run / "images").is_dir()
    assert (run / "test.csv").is_file()


@pytest.mark.slow
def test_a_prediction(terminal, tmp_path, voc):
    assert terminal("--model.dense_epochs", "0").status == 0
    ckpt, *_ = (tmp_path / "results").rglob("v0/weights/lightning/model.ckpt")
    data = ["--data", "PredictFolder", "--data.root", str(voc / "JPEGImages"), "--data.num_workers", "0"]
    command = [sys.executable, "-c", SCRIPT, "predict", "--model", "Defend", *data, "--ckpt_path", str(ckpt)]
    screen = Screen(command, tmp_path)
    assert screen.status == 0
    assert "Traceback" not in str(screen)
    ours = [line for line in screen.lines if OUR_LOG.match(line)]
    assert len(ours) == len(set(ours))
    *_, pictures, table, checkpoint, following = [line[17:].partition(": ")[0] for line in ours]
    assert (pictures, table, checkpoint, following) == ("Pictures", "Table", "Checkpoint", "Next")
    last = screen.lines.index(ours[-1])
    assert "anomalib export --export_type openvino" in "".join(f"{line:{WIDTH}}" for line in screen.lines[last:])
    assert len(screen.lines) - last <= 3  # one line, longer than the screen is wide


def test_an_error_of_ours_is_its_sentence(terminal):
    screen = terminal("--data.category", "dgo")
    assert screen.status == 1
    message = "error: category: unknown 'dgo'. Did you mean 'dog'? Available are: cat, dog, person."
    assert screen.lines[-1] == message
    assert "Traceback" not in str(screen)


@pytest.mark.slow
def test_a_misspelt_option(terminal):
    screen = terminal("--model.backbon", "x")
    assert screen.status == 2
    assert screen.lines[-1] == "Did you mean 'backbone'?"


@pytest.mark.slow
def test_the_help_explains_every_option(tmp_path):
    """``anomalib train --model.help Defend``: beside each option the sentence that its docstring has for it."""
    screen = Screen([sys.executable, "-c", SCRIPT, "train", "--model.help", "Defend"], tmp_path)
    assert screen.status == 0
    assert "Traceback" not in str(screen)
    assert max(len(line) for line in screen.lines) <= WIDTH
    options = " ".join(str(screen).partition("Help for ")[2].split())
    explained = {entry.arg_name: entry.description for entry in parse(Defend.__doc__).params}
    assert set(explained) == set(inspect.signature(Defend).parameters)
    for name, words in explained.items():
        shown = options.partition(f" --model.{name} ")[2].partition(" --model.")[0]
        assert " ".join(words.split()) in shown, name
    assert options.count(" [main] ") == sum(words.startswith("[main] ") for words in explained.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "last"),
    [
        (["--model.weights", "nowhere.pth"], "error: weights='nowhere.pth': no such file (working directory "),
        (["--model.dense_epochs", "-1"], "error: dense_epochs=-1 must be at least 0."),
        (["--model.backbone", "vit_digits_patch8_95"], "error: backbone='vit_digits_patch8_95' is not a timm model. "),
    ],
)
def test_other_errors_of_ours(terminal, arguments, last):
    screen = terminal(*arguments)
    assert screen.status == 1
    assert last in screen.lines[-1] + screen.lines[-2]
    assert "Traceback" not in str(screen)


@pytest.mark.slow
def test_an_error_of_a_process_that_reads_images(terminal, voc):
    for path in (voc / "JPEGImages").iterdir():
        content = path.read_bytes()
        start = content.index(b"\xff\xda") + 4  # of the pixels; the file's end stays
        path.write_bytes(content[:start] + b"\xff\xd8" * ((len(content) - start) // 2 - 1) + b"\xff\xd9")
    screen = terminal("--data.num_workers", "1")
    assert screen.status == 1
    last = "".join(f"{line:{WIDTH}}" for line in screen.lines[-2:])  # it is longer than the screen is wide
    assert re.match(r"error: Cannot read image .*\.jpg \(.*\)\. Replace the file, or leave it out with ", last)
    assert "Traceback (most" not in str(screen)


@pytest.mark.slow
def test_a_variable_brings_the_traceback_back(terminal):
    screen = terminal("--data.category", "dgo", environment={console.TRACEBACK: "1"})
    assert screen.status == 1
    assert "Traceback" in str(screen)
    assert "in resolve_categories" in str(screen)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "last"),
    [
        (["--model", "Defnd"], "Did you mean 'Defend'?"),
        (["--model", "anomalib_defend.Defnd"], "Did you mean 'Defend'?"),
        (["--data.categry", "dog"], "Did you mean 'category'?"),
        (["--data", "SemanticVCO"], "Did you mean 'SemanticVOC'"),
        (["--trainer.maxepochs", "3"], "Did you mean '--trainer.max_epochs' or "),
    ],
)
def test_other_misspelt_names(terminal, arguments, last):
    screen = terminal(*arguments, options=[])
    assert screen.status == 2
    assert screen.lines[-1].startswith(last)


def test_our_own_program(ours, tmp_path):
    screen = ours("example", "--root", "scenes")
    assert screen.status == 0
    assert len(screen.lines) == len(set(screen.lines))
    assert "anomalib train --model Defend" in str(screen)
    assert (tmp_path / "scenes" / "VOC2012").is_dir()


@pytest.mark.parametrize(
    ("arguments", "status", "last"),
    [
        (["example", "--root", "x", "--category", "thre"], 1, "error: normal='thre' .* Did you mean 'three'"),
        (["score", "model.xml", "photos", "--outt", "x"], 2, r"Did you mean '--out'\?$"),
        (["reprot", "x"], 2, r"Did you mean 'report'\?$"),
        pytest.param(["report", "nowhere"], 1, "error: nowhere does not exist: give a run's ", marks=pytest.mark.slow),
        pytest.param(["benchmark", "run", "vco"], 1, "error: vco is no .* Did you mean 'voc'", marks=pytest.mark.slow),
    ],
)
def test_errors_of_our_own_program(ours, arguments, status, last):
    screen = ours(*arguments)
    assert screen.status == status
    (found,) = (number for number, line in enumerate(screen.lines) if re.match(last.partition(" ")[0], line))
    assert re.match(last, " ".join(screen.lines[found:]))  # nothing else comes behind
    assert "Traceback (most" not in str(screen)


def test_our_own_program_gives_the_traceback_where_it_is_asked_for(ours):
    screen = ours("example", "--root", "x", "--category", "thre", **{console.TRACEBACK: "1"})
    assert screen.status == 1
    assert "Traceback (most" in str(screen)


# ------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/usr/bin/anomalib", True), ("anomalib.exe", True), ("anomalib-defend", True),
        ("/x/anomalib_defend/__main__.py", True), ("", False), ("-c", False), ("/x/anomalib.py", False),
        ("/x/__main__.py", False), ("/usr/bin/pytest", False),
    ],
)  # fmt: skip
def test_only_the_two_scripts_are_consoles(monkeypatch, path, expected):
    monkeypatch.setattr(sys, "argv", [path])
    assert is_console() is expected


def test_a_program_of_the_user_keeps_its_hooks():
    assert not any(isinstance(handler, console._Screen) for handler in logging.getLogger("anomalib_defend").handlers)
    assert sys.excepthook.__module__ != console.__name__


def raised(function, *arguments):
    with pytest.raises(Exception) as caught:  # noqa: PT011 - any
        function(*arguments)
    return caught.value


def test_which_errors_are_worded():
    def of_a_parser():
        exceptions = [TypeError(), ours]
        raise ValueError(str(exceptions))

    ours = raised(lambda: Defend(dense_epochs=-1))
    assert console.worded(ours) is ours
    assert console.worded(raised(lambda: int("a"))) is None
    # torch's complaint about a line of ours is a fault of ours, not advice
    of_torch = raised(anomaly_map, torch.ones(3), (2, 2), (4, 4))
    assert isinstance(of_torch, RuntimeError)
    assert console.worded(of_torch) is None
    assert console.worded(raised(of_a_parser)) is None  # not jsonargparse's


class Refusing(Dataset):
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __len__(self):
        return 1

    def __getitem__(self, index):
        function, arguments = self.call
        return function(*arguments)


def test_errors_of_other_processes_are_worded():
    def error(*call):
        return raised(list, DataLoader(Refusing(*call), num_workers=1))

    found = console.worded(error(resolve_categories, ["dgo"], Annotations(["cat", "dog"], [], {})))
    assert str(found) == "category: unknown 'dgo'. Did you mean 'dog'? Available are: cat, dog."
    assert console.worded(error(int, "a")) is None
    assert console.worded(error(anomaly_map, torch.ones(3), (2, 2), (4, 4))) is None  # torch's, in a line of ours
    assert console._of_worker(ValueError, "") is None


def test_every_error_that_we_raise_is_foreseen():
    text = "".join(file.read_text() for file in Path(anomalib_defend.__file__).parent.rglob("*.py"))
    own = dict(re.findall(r"^class (\w+Error)\((\w+)\)", text, re.MULTILINE))
    of_programmers = {"AssertionError", "AttributeError"}
    raised = set(re.findall(r"^ +raise (\w+Error)\(", text, re.MULTILINE)) - of_programmers
    assert {"ValueError", *own} <= raised
    kinds = {getattr(builtins, own.get(name, name)) for name in raised}
    assert {kind for kind in kinds if not issubclass(kind, console.FORESEEN)} == set()


# --------------------------------------------------------------------------------------------------------- log


class Kept(logging.Handler):
    def __init__(self):
        super().__init__()
        self.messages = []

    def emit(self, record):
        self.messages.append(record.getMessage())


@pytest.fixture
def root(monkeypatch):
    """The root logger without handlers, and this package's with the console's."""
    ours = logging.getLogger("anomalib_defend")
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(ours, "handlers", [console._Screen()])
    monkeypatch.setattr(ours, "propagate", True)
    return logging.getLogger()


def test_doubled_lines_are_printed_once(root, capsys):
    from rich.logging import RichHandler

    file = Kept()
    root.handlers += [logging.StreamHandler(sys.stderr), RichHandler(), file]
    logger = logging.getLogger("anomalib_defend.data.voc")
    for _ in range(2):
        logger.warning("read %d images", 7)
    logger.error("an error")
    printed = capsys.readouterr()
    assert (printed.out + printed.err).count("read 7 images") == 1  # a warning again is no news
    assert (printed.out + printed.err).count("an error") == 1
    assert file.messages == ["read 7 images", "read 7 images", "an error"]  # the user's own handler gets all


def test_a_logging_that_doubles_nothing_stays_as_it_is(root, capsys):
    kept = Kept()
    root.handlers.append(kept)
    logging.getLogger("anomalib_defend.data.voc").warning("a line")
    assert kept.messages == ["a line"]
    assert capsys.readouterr().err == ""


def test_warnings_are_printed_where_no_logging_was_set_up(root, capsys, monkeypatch):
    """``anomalib-defend`` sets none up."""
    monkeypatch.setattr(root, "handlers", [])  # pytest's own
    for _ in range(2):
        logging.getLogger("anomalib_defend.data.voc").warning("a warning")
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("WARNING a warning\n")) == ("", 1)


# ------------------------------------------------------------------------------------------------------- names


def test_did_you_mean():
    assert did_you_mean("dgo", ["cat", "dog", "person"]) == " Did you mean 'dog'?"
    assert did_you_mean("Dog", ["dog"]) == " Did you mean 'dog'?"
    assert did_you_mean("zebra", ["cat", "dog"]) == ""
    with pytest.raises(ValueError, match=r"must be one of 'guided', 'none'. Did you mean 'guided'\?$"):
        check_choices(masking=("giuded", ("guided", "none")))


def test_nearest_encoders():
    with pytest.raises(ValueError, match="Similar names: deit_tiny_patch16_224, "):
        Defend(backbone="deit_tinny_patch16_224", pre_trained=False)


@pytest.mark.parametrize("name", anomalib_defend.models.__all__)
def test_the_options_that_matter_most_are_marked(name):
    model = getattr(anomalib_defend.models, name)
    marked = [entry.arg_name for entry in parse(model.__doc__).params if entry.description.startswith("[main] ")]
    assert 3 <= len(marked) <= 8
    assert {"target_fpr"} < set(marked) <= set(inspect.signature(model).parameters)


@pytest.mark.parametrize("name", anomalib_defend.data.__all__)
def test_workers_are_the_usable_cores(name):
    parents = [inspect.signature(parent).parameters for parent in getattr(anomalib_defend.data, name).__mro__]
    assert next(known["num_workers"] for known in parents if "num_workers" in known).default == NUM_WORKERS
    assert min(8, usable_cores()) == NUM_WORKERS


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux")
def test_cores_that_are_taken_away_are_not_used():
    one = {min(os.sched_getaffinity(0))}
    code = f"import os; os.sched_setaffinity(0, {one}); import workers; print(workers.usable_cores())"
    folder = Path(anomalib_defend.__file__).parent / "data"
    result = subprocess.run([sys.executable, "-S", "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert result.stdout == "1\n"


# ---------------------------------------------------------------------------------------------------- quickstart

STUBS = {
    "anomalib-defend": 'mkdir -p "$3"',
    "anomalib": """
case $1 in
train) r="quickstart/results/a model/v0"; mkdir -p "$r/weights/lightning" "$r/images"
       touch "$r/weights/lightning/model.ckpt"; echo "│        image_AUROC        │    0.9876543     │" ;;
export) while [ "$1" != --export_root ]; do shift; done; mkdir -p "$2"; touch "$2/model.xml"; test -f "$4" ;;
esac
""",
}


@pytest.mark.skipif(shutil.which("make") is None, reason="make")
def test_quickstart_begins_with_the_minutes_and_ends_with_five_lines(tmp_path):
    folder = tmp_path / "a clone"
    (folder / "bin").mkdir(parents=True)
    shutil.copy(REPOSITORY / "Makefile", folder)
    for name, text in STUBS.items():
        (folder / "bin" / name).write_text(f"#!/bin/bash\nset -e\n{text}\n")
        (folder / "bin" / name).chmod(0o755)
    installed = folder / ".venv" / ".installed-quickstart"
    installed.parent.mkdir()
    installed.touch()
    (folder / ".venv" / "bin").mkdir()
    command = ["make", "--no-print-directory", "quickstart", "BIN=bin", "-o", ".venv/.installed-quickstart"]
    of_another_make = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}
    environment = {name: value for name, value in os.environ.items() if name not in of_another_make}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    first, *_, empty, auroc, threshold, pictures, model, following = result.stdout.splitlines()
    assert "about 5 minutes" in first
    assert empty == ""
    assert auroc == "Image AUROC: 0.9876543"
    assert threshold.startswith("Threshold:   0.5 ")
    assert pictures == "Pictures:    quickstart/results/a model/v0/images"
    assert model == "Model:       quickstart/openvino/model.xml"
    assert following.startswith("What next:   bin/anomalib predict --model Defend ")
    assert following.endswith("--ckpt_path 'quickstart/results/a model/v0/weights/lightning/model.ckpt'")
