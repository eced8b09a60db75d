"""The command line."""

import contextlib
import dataclasses
import io
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

import xpnn
from xpnn import backend as backends
from xpnn.backend import Backend
from xpnn.data import Dataset
from xpnn.data.sampling import SAMPLINGS
from xpnn.data.tta import LEVELS as TTA_LEVELS
from xpnn.errors import CheckpointError, SettingError, XpnnError
from xpnn.optim import RULES
from xpnn.training import Callback, Checkpoints, EarlyStopping, MetricsLog, Solver, report
from xpnn.training.folder import RunFolder
from xpnn.training.recipes import RECIPES
from xpnn.training.run import build_model, build_solver, load_best, load_data, predictions
from xpnn.training.settings import AUGMENTATIONS, SCHEDULE_NAMES, Settings, find_schedule, flag

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Neural networks written once against the array API, on NumPy and CuPy.",
)
console = Console(soft_wrap=True)

BackendOption = Annotated[
    str | None,
    typer.Option(help="numpy, cupy, torch, array-api-strict; auto takes CuPy where a GPU is.", envvar="XPNN_BACKEND"),
]
DeviceOption = Annotated[
    int | None,
    typer.Option(help="Which GPU, as nvidia-smi counts them.", callback=lambda number: _see_device(number)),
]
ModelOption = Annotated[str | None, typer.Option(help=f"One of {', '.join(RECIPES)}; fc by default.")]
HiddenOption = Annotated[
    str | None, typer.Option(help="Sizes of the hidden layers: 500,500; one for convnet and two-layer.")
]
EpochsOption = Annotated[int | None, typer.Option(help="Passes over the data.")]
BatchSizeOption = Annotated[int | None, typer.Option(help="Images a batch.")]
NumTrainOption = Annotated[int | None, typer.Option(help="Use the first so many training images alone.")]
DtypeOption = Annotated[str | None, typer.Option(help="float32, float64, or for mixed precision float16, bfloat16.")]
SeedOption = Annotated[int | None, typer.Option(help="Of weights, batches, dropout and augmentation.")]
DataOption = Annotated[
    str | None, typer.Option(help="Folder or archive of CIFAR-10; else XPNN_DATA, else the user's cache.")
]
DownloadOption = Annotated[bool, typer.Option("--download", help="Fetch CIFAR-10 (170 MB) if it is not there.")]
WeightScaleOption = Annotated[float | None, typer.Option(help="Standard deviation of the first weights.")]
OutOption = Annotated[str | None, typer.Option(help="New folder for the results; by default one under runs/.")]

COURSE_RULES = ("sgd", "sgd_momentum", "sgd_nesterov_momentum", "rmsprop", "adam")


@app.callback(invoke_without_command=True)
def options(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    if version:
        _say(f"xpnn {xpnn.__version__}")
        raise typer.Exit


@app.command()
def train(
    dataset: Annotated[str | None, typer.Argument(help="digits, which ships with xpnn (default), or cifar10.")] = None,
    backend: BackendOption = None,
    device: DeviceOption = None,
    model: ModelOption = None,
    hidden: HiddenOption = None,
    widths: Annotated[
        str | None,
        typer.Option(
            help="Channels of the stages: three for resnet20 and resnet56, the first for resnet9, "
            "one a block for airbench."
        ),
    ] = None,
    filters: Annotated[int | None, typer.Option(help="Filters of convnet's convolution.")] = None,
    filter_size: Annotated[int | None, typer.Option(help="Their side in pixels.")] = None,
    patch: Annotated[int | None, typer.Option(help="Side of vit's patches in pixels.")] = None,
    dim: Annotated[int | None, typer.Option(help="Numbers of each of vit's tokens.")] = None,
    depth: Annotated[int | None, typer.Option(help="Blocks of vit.")] = None,
    heads: Annotated[int | None, typer.Option(help="Heads of vit's attention.")] = None,
    epochs: EpochsOption = None,
    batch_size: BatchSizeOption = None,
    optimizer: Annotated[
        str | None,
        typer.Option(help=f"One of {', '.join(RULES)}. Muon takes hidden weights, AdamW at 1e-3 the others."),
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate; a fitting one for each optimizer.")] = None,
    momentum: Annotated[float | None, typer.Option(help="Of an optimizer that has it.")] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="Of an optimizer that has it; vit's biases, norms and positions are spared.")
    ] = None,
    clip_norm: Annotated[float | None, typer.Option(help="Scale larger gradients down to this norm.")] = None,
    accumulate: Annotated[int | None, typer.Option(help="Batches a step, as of one large batch.")] = None,
    ema: Annotated[float | None, typer.Option(help="Decay of an average of the weights to evaluate with.")] = None,
    lr_decay: Annotated[float | None, typer.Option(help="Factor of the learning rate after each epoch.")] = None,
    schedule: Annotated[
        str | None, typer.Option(help="As `xpnn schedule` draws them: cosine, one-cycle:peak=0.2, ...")
    ] = None,
    reg: Annotated[float | None, typer.Option(help="Strength of the L2 penalty.")] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="Share of a label given to all classes.")] = None,
    augment: Annotated[str | None, typer.Option(help=f"none, or some of {AUGMENTATIONS}, with commas.")] = None,
    tta: Annotated[
        str | None, typer.Option(help=f"Augmentation for the validation accuracy: {', '.join(TTA_LEVELS)}.")
    ] = None,
    dropout: Annotated[float | None, typer.Option(help="Probability to drop.")] = None,
    batchnorm: Annotated[bool | None, typer.Option("--batchnorm/--no-batchnorm", help="Batch norm.")] = None,
    weight_scale: WeightScaleOption = None,
    preprocess: Annotated[
        str | None, typer.Option(help="center (subtract the mean image; not for airbench) or standardize.")
    ] = None,
    sampling: Annotated[
        str | None, typer.Option(help=f"One of {', '.join(SAMPLINGS)}; with replacement as in the course.")
    ] = None,
    drop_last: Annotated[
        bool | None, typer.Option("--drop-last/--keep-last", help="Leave out what does not fill a batch (default).")
    ] = None,
    patience: Annotated[int | None, typer.Option(help="Stop after so many epochs without progress.")] = None,
    num_train: NumTrainOption = None,
    dtype: DtypeOption = None,
    seed: SeedOption = None,
    data: DataOption = None,
    download: DownloadOption = False,
    out: OutOption = None,
    resume: Annotated[
        str | None,
        typer.Option(
            help="Folder of a run to train on; --epochs, --backend, --data and --patience may change. "
            "A schedule then spans the new number of epochs."
        ),
    ] = None,
    summary: Annotated[
        bool, typer.Option("--summary", help="Read the data, show the net layer by layer, and exit.")
    ] = False,
) -> None:
    """Train a net and keep its weights, metrics and curves.

    What is not given takes a value that suits the model and the data set; config.json in the run's folder has them all.
    """
    given = {
        "model": model, "hidden": _sizes("--hidden", hidden), "widths": _sizes("--widths", widths),
        "filters": filters, "filter_size": filter_size, "patch": patch, "dim": dim, "depth": depth, "heads": heads,
        "epochs": epochs, "batch_size": batch_size, "optimizer": optimizer, "lr": lr, "momentum": momentum,
        "weight_decay": weight_decay, "clip_norm": clip_norm, "accumulate": accumulate, "ema": ema,
        "lr_decay": lr_decay, "schedule": schedule, "reg": reg, "label_smoothing": label_smoothing,
        "augment": augment, "tta": tta, "dropout": dropout, "batchnorm": batchnorm, "weight_scale": weight_scale,
        "preprocess": preprocess, "sampling": sampling, "drop_last": drop_last, "patience": patience,
        "num_train": num_train, "dtype": dtype, "seed": seed, "data": data, "backend": backend,
    }  # fmt: skip
    for name, path in (("--out", out), ("--resume", resume)):
        if summary and path is not None:
            raise SettingError(f"{name}: expected none with --summary, which trains nothing; received {path!r}")
    if resume == "":
        raise SettingError("--resume: expected the folder of a run; received an empty name")
    before = RunFolder(resume) if resume else None
    if before:
        settings = _resumed(before, given | {"dataset": dataset, "out": out})
    else:
        settings = Settings.of(dataset or "digits", **given)
    chosen = _choose_backend(settings.backend, device)
    images = _images(settings, download)
    net = build_model(settings, images)
    if summary:
        net.summary()
        return
    solver = build_solver(settings, net, images, _along_the_way(settings))
    if before:
        _train_on(solver, settings, before)
    folder = before or RunFolder.create(out, settings.dataset)
    folder.write_config(chosen, settings=settings)
    solver.callbacks += [MetricsLog(folder.metrics), Checkpoints(folder.path), report.Curves(folder.curves)]
    _say(f"{settings.dataset}: {len(images.X_train):,} training images; {net}; results in {folder.path}")
    with folder.gone_if_unused():
        _train(solver)
    _conclude(solver, settings, folder)


def _along_the_way(settings: Settings) -> list[Callback]:
    shown = report.ProgressBar(console) if console.is_terminal else report.EpochLines(console)
    return [shown] if settings.patience is None else [shown, EarlyStopping(settings.patience)]


def _train_on(solver: Solver, settings: Settings, folder: RunFolder) -> None:
    """Put the solver where the run stopped, and forget what the run has written of later epochs."""
    solver.resume(folder.last)
    if solver.epoch >= settings.epochs:
        raise SettingError(
            f"--epochs: expected more than {solver.epoch}, which {folder.path} has done; received {settings.epochs}"
        )
    folder.truncate_metrics(solver.epoch)


def _conclude(solver: Solver, settings: Settings, folder: RunFolder) -> None:
    """Say how a training ended; exit with status 1 where it diverged, and 130 where Ctrl-C ended it."""
    if solver.diverged:
        _say(f"stopped: {solver.stop_reason}")
        raise typer.Exit(1)
    if solver.stop_reason and solver.epoch < settings.epochs:
        _say(f"stopped at epoch {solver.epoch} of {settings.epochs}: {solver.stop_reason}")
    views = "" if settings.tta == "none" else f" with {settings.tta}"
    _say(f"best validation accuracy {solver.best_val_acc:.4f}{views} after {solver.seconds:.1f} s; {folder.curves}")
    if solver.stop_reason == "interrupted" and solver.iteration < solver.num_iterations:
        if solver.iteration:
            _say(f"xpnn train --resume {folder.path} trains on")
        raise typer.Exit(130)


@app.command()
def compare(
    dataset: Annotated[str, typer.Argument(help="digits (default) or cifar10.")] = "digits",
    rules: Annotated[
        str, typer.Option(help="Update rules, each with its learning rate after a colon if not the course's.")
    ] = ",".join(COURSE_RULES),
    backend: BackendOption = None,
    device: DeviceOption = None,
    model: ModelOption = None,
    hidden: HiddenOption = None,
    epochs: EpochsOption = 5,
    batch_size: BatchSizeOption = 100,
    weight_scale: WeightScaleOption = None,
    num_train: NumTrainOption = None,
    dtype: DtypeOption = None,
    seed: SeedOption = None,
    data: DataOption = None,
    download: DownloadOption = False,
    out: OutOption = None,
) -> None:
    """Train one net under several update rules from the same first weights, and draw them side by side.

    With cifar10 it is the course's experiment: 4,000 images, 5 hidden layers of 100 units. Another model has the rest
    from its recipe.
    """
    is_course = model in (None, "fc")
    if is_course:
        hidden = hidden or "100,100,100,100,100"
        weight_scale = 5e-2 if weight_scale is None and dataset == "cifar10" else weight_scale
    common = {
        "model": model, "hidden": _sizes("--hidden", hidden), "epochs": epochs, "batch_size": batch_size,
        "weight_scale": weight_scale, "dtype": dtype, "seed": seed, "data": data, "backend": backend,
        "preprocess": "center" if is_course else None, "sampling": "replacement", "schedule": "constant",
        "lr_decay": 1.0, "num_train": 4000 if dataset == "cifar10" and num_train is None else num_train,
    }  # fmt: skip
    runs = {}
    for rule in rules.split(","):
        name, _, rate = rule.strip().partition(":")
        if name not in RULES or rule.strip() in runs:
            raise SettingError(f"--rules: expected some of {', '.join(RULES)}, each once; received {rules!r}")
        with _naming_rules():
            runs[rule.strip()] = Settings.of(
                dataset, **common, optimizer=name, lr=_number("--rules", rate) if rate else None
            )
    first = next(iter(runs.values()))
    chosen = _choose_backend(first.backend, device)
    images = _images(first, download)
    with _naming_rules():  # all of them before anything is written
        built = {
            label: build_solver(settings, build_model(settings, images), images) for label, settings in runs.items()
        }
    folder = RunFolder.create(out, f"compare-{dataset}")
    folder.write_config(chosen, **runs)
    solvers: dict[str, Solver] = {}
    for label, solver in built.items():
        with folder.gone_if_unused():
            with console.status(f"{label} ..."):
                _train(solver)
            if solver.stop_reason == "interrupted" and not solvers:
                _fail("interrupted")
                raise typer.Exit(130)
        if solver.stop_reason == "interrupted":
            break
        solvers[label] = solver
        folder.write_histories(solvers)
        _say(f"{label}: {solver.stop_reason or 'done'} in {solver.seconds:.1f} s")
    rows = [
        (
            label,
            f"{runs[label].lr:g}",
            f"{s.loss_history[-1]:.4g}",
            f"{s.train_acc_history[-1]:.3f}",
            f"{s.val_acc_history[-1]:.3f}",
        )
        for label, s in solvers.items()
    ]
    report.table(console, "", ("rule", "learning rate", "last loss", "train acc", "val acc"), rows)
    picture = folder.path / "comparison.png"
    report.plot_comparison(picture, solvers, f"{dataset}: update rules from the same first weights")
    _say(f"figure in {picture}")
    if len(solvers) < len(runs):
        raise typer.Exit(130)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    tta: Annotated[
        str | None, typer.Option(help=f"One of {', '.join(TTA_LEVELS)}, beside the plain one; the run's by default.")
    ] = None,
    backend: BackendOption = None,
    device: DeviceOption = None,
    data: DataOption = None,
) -> None:
    """Measure the best weights of a run on validation and test images, class by class."""
    import numpy as np

    changes = {name: value for name, value in (("backend", backend), ("data", data)) if value is not None}
    folder = RunFolder(run)
    level = tta or folder.read_settings().tta
    if level not in TTA_LEVELS:
        raise SettingError(f"--tta: expected one of {', '.join(TTA_LEVELS)}; received {level!r}")
    _check_device(backends.get(backend or folder.read_settings().backend), device)
    model, images, meta = load_best(folder, changes)
    hits = {}
    for view in dict.fromkeys(("none", level)):
        for split, name in (("val", "validation"), ("test", "test")):
            X, y = getattr(images, f"X_{split}"), getattr(images, f"y_{split}")
            column = name if view == "none" else f"{name}, {view}"
            hits[column] = y, predictions(model, X, view) == y
    rows = [
        (name, *(f"{correct[y == label].mean():.4f}" for y, correct in hits.values()))
        for label, name in enumerate(images.class_names)
    ]
    rows.append(("all", *(f"{np.mean(correct):.4f}" for _, correct in hits.values())))
    weights = f", weights of epoch {meta['epoch']}" if "epoch" in meta else ""
    title = f"accuracy of {run}{weights}, on {model.backend}"
    report.table(console, title, ("class", *hits), rows)


@app.command()
def schedule(
    specs: Annotated[
        list[str] | None, typer.Argument(help="Schedules such as cosine or one-cycle:peak=0.2; all named ones.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Mark the axis in epochs of such a training.")] = None,
    out: Annotated[Path, typer.Option(help="The picture, a .png.")] = Path("schedules.png"),
) -> None:
    """Draw the factor of the learning rate over training for one schedule or several."""
    if epochs is not None and epochs < 1:
        raise SettingError(f"--epochs: expected a whole number of at least 1; received {epochs}")
    if out.suffix != ".png" or not out.parent.is_dir():
        raise SettingError(f"--out: expected a .png in a folder that exists; received {out}")
    chosen = {spec: find_schedule(spec) for spec in specs or SCHEDULE_NAMES}
    try:
        report.plot_schedules(out, chosen, epochs)
    except OSError as error:
        raise SettingError(f"--out: cannot write to {out}: {error.strerror}") from None
    is_wide = console.width >= max(map(len, chosen)) + 53
    percents = (0, 10, 25, 50, 75, 90, 100) if is_wide else (0, 25, 50, 75, 100)
    rows = [(spec, *(f"{function(percent / 100):.2f}" for percent in percents)) for spec, function in chosen.items()]
    report.table(console, "", ("factor at %", *map(str, percents)), rows)
    _say(f"figure in {out}")


@app.command()
def check(backend: BackendOption = None, device: DeviceOption = None) -> None:
    """Check published values, gradients and agreement between backends, on every backend that is available here."""
    from xpnn.check import run

    chosen = (
        [backends.get(backend).require()]
        if backend
        else [b for b in map(backends.get, backends.BACKENDS) if b.is_available()]
    )
    _check_device(max(chosen, key=lambda b: b.asynchronous), device)
    results = {}
    with console.status("checking ..."):
        for b in chosen:
            results[b] = list(run(b))
    rows = [
        (same[0].check, f"{same[0].limit:.0e}", *(f"{'' if r.passed else 'FAILED '}{r.error:.0e}" for r in same))
        for same in zip(*results.values(), strict=True)
    ]
    report.table(console, "", ("error of", "limit", *(b.name.removeprefix("array-api-") for b in chosen)), rows)
    failed = [(b, r) for b, rs in results.items() for r in rs if not r.passed]
    for b, result in failed:
        _say(f"{b}: {result.check} failed: {result.message or f'error {result.error:.2e}, at most {result.limit:.0e}'}")
    _say(f"{sum(map(len, results.values())) - len(failed)} passed, {len(failed)} failed")
    for b in map(backends.get, backends.BACKENDS):
        if not b.is_available():
            _say(f"not checked: {b} ({b.reason})")
    if failed:
        raise typer.Exit(1)


@app.command()
def info() -> None:
    """Show backends, devices and versions, what is missing and what installs it."""
    import platform
    from importlib.metadata import version

    from xpnn import kernels

    _say(f"xpnn {xpnn.__version__}, Python {platform.python_version()}, {platform.platform()}")
    rows, remedies = [], []
    for b in map(backends.get, backends.BACKENDS):
        if b.is_available():
            kernels.load(b.name)
            fast = [f for f, library in kernels.TABLE if library == b.name and kernels.fast_path(f, library)]
            families = dict.fromkeys(function.split(".")[-2] for function in fast)
            rows.append((b.name, b.version(), b.device_name(), ", ".join(families) or "none"))
        else:
            rows.append((b.name, "-", b.reason, "-"))
            remedies += [f"for {b.name}: {b.install}"] if b.install else []
    report.table(console, "", ("backend", "version", "device", "kernels for"), rows)
    if kernels.fast_path("optim.in_place.adam", "numpy"):
        from xpnn.kernels.numpy.loops import COMPILED, REASON

        how = f"compiled by numba {version('numba')}" if COMPILED else f"NumPy's own, not compiled: {REASON}"
        _say(f"loops of numpy's kernels: {how}")
    if backends.get("cupy").is_available() and kernels.fast_path("products.matmul", "cupy"):
        from xpnn.kernels.cupy import convolution, graph, products

        _say(f"products of cupy: {products.describe()}")
        _say(f"convolutions of cupy: {convolution.describe()}")
        _say(f"training steps of cupy: {graph.describe()}")
    for remedy in remedies:
        _say(remedy)
    _say(f"auto takes {_auto()}")


def _auto() -> str:
    backend = backends.get("auto")
    return str(backend) if backend.name == "cupy" else f"{backend} ({backends.get('cupy').reason})"


def _see_device(number: int | None) -> int | None:
    """Leave this process one GPU, before anything looks for one."""
    if number is not None:
        try:
            backends.see_one_device(number)
        except SettingError as error:
            raise SettingError(f"--{error}") from None
    return number


def _check_device(backend: Backend, device: int | None) -> None:
    if device is not None and not backend.asynchronous:
        reason = backends.get("cupy").reason
        why = f"; cupy: {reason}" if reason else ""
        raise SettingError(f"--device: expected a backend on a GPU, such as cupy; received {backend}{why}")


def _choose_backend(name: str, device: int | None) -> Backend:
    backend = backends.get(name).require()
    _check_device(backend, device)
    _say(f"backend: {_auto() if name == 'auto' else backend}")
    return backend


def _images(settings: Settings, download: bool) -> Dataset:
    """The data of a run, fetched first where that was asked for."""
    if download and settings.dataset == "digits":
        raise SettingError("--download: expected cifar10; digits ship with xpnn")
    if download:
        from xpnn.data import download_cifar10

        download_cifar10(settings.data, progressbar=console.is_terminal)
    return load_data(settings)


def _train(solver: Solver) -> None:
    """Train; what NumPy and the Solver would warn of, a loss that is no number, is told by the caller."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        solver.train()


def _resumed(folder: RunFolder, given: dict[str, Any]) -> Settings:
    """The settings of an earlier run, with what may change replaced."""
    given = {name: value for name, value in given.items() if value is not None}
    if fixed := given.keys() - {"epochs", "backend", "data", "patience"}:
        flags = ", ".join(map(flag, sorted(fixed)))
        raise SettingError(f"{flags}: cannot change when a run is resumed; {folder.config} has the settings")
    try:
        return dataclasses.replace(folder.read_settings(), **given)
    except CheckpointError as error:
        raise CheckpointError(f"--resume: {error}") from None


@contextlib.contextmanager
def _naming_rules() -> Iterator[None]:
    """Let errors name --rules in place of the flags that `xpnn train` has for it."""
    try:
        yield
    except SettingError as error:
        raise SettingError(str(error).replace("--lr:", "--rules:").replace("--optimizer:", "--rules:")) from None


def _sizes(name: str, text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(size) for size in text.split(","))
    except ValueError:
        raise SettingError(f"{name}: expected sizes with commas between, such as 500,500; received {text!r}") from None


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise SettingError(f"{name}: expected a number; received {text!r}") from None


def _say(text: str) -> None:
    console.print(text, highlight=False, markup=False)


def main() -> NoReturn:
    """Run the command line; a user's error is one line on standard error and exit status 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # where an encoding lacks a character of a path
    try:
        sys.exit(app(standalone_mode=False))
    except XpnnError as error:
        sys.exit(_fail(str(error)))
    except MemoryError as error:
        sys.exit(_fail(f"not enough memory: {str(error) or 'none is left'}"))
    except OSError as error:  # a full disk, a folder that went away
        sys.exit(_fail(f"{error.filename or 'output'}: {error.strerror or error}"))
    except KeyboardInterrupt:
        _fail("interrupted")
        sys.exit(130)
    except Exception as error:
        if "memory" in str(error) and isinstance(error, RuntimeError):  # torch has no error of its own for it
            sys.exit(_fail(f"not enough memory: {error}"))
        # typer's own errors (an unknown flag, a word where a number belongs) come from click or from a copy of it
        # inside typer, depending on its version; what marks them is that they can format themselves.
        if not hasattr(error, "format_message"):
            raise
        message = error.format_message()
        if details := getattr(error.__context__, "errors", None):  # pydantic's, which leave out what was received
            message += f"; received {details()[0]['input']!r}"
        sys.exit(_fail(message))


def _fail(message: str) -> int:
    if message:  # none for a bare `xpnn`, which has printed its help
        print(f"xpnn: {' '.join(message.split())}", file=sys.stderr)
    return 2
