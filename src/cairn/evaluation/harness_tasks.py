"""Finding and building lm-evaluation-harness's own tasks, offline if wanted, without running code from the hub.

    names ── index of the YAML files needed ── the harness's factory ── task objects, groups
                 │                                  │
                 └─ unknown? did you mean           ├─ --data-dir: `custom_dataset` reads local files
                                                    ├─ code_eval (a script on the hub): replaced by the sandbox
                                                    └─ tiny*: aggregated by the mean; gp-IRT is computed apart

Everything else of a task (prompt, choices, filters, metrics, versions) is the harness's own. lm_eval is imported inside
the functions: it is the extra `eval`, and slow.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import random
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cairn.errors import CairnError, DataError, EngineError, InputError, MissingExtraError, did_you_mean
from cairn.evaluation.harness_data import LocalData, Splits
from cairn.evaluation.sandbox import CodeChecker

__all__ = ["ALL_TASKS", "LoadedTasks", "load_tasks", "offline", "require_lm_eval"]

ALL_TASKS = "*"  # key of `shots` for the tasks that it does not name

# Indexing all 14,000 tasks takes 5 s or more: these names begin in known folders.
_FOLDERS = {
    "ai2_arc": ("arc",), "arc_": ("arc",), "blimp": ("blimp",), "boolq": ("super_glue/boolq",), "gsm8k": ("gsm8k",),
    "hellaswag": ("hellaswag",), "humaneval": ("humaneval",), "mmlu": ("mmlu/default", "mmlu/continuation"),
    "nq_open": ("nq_open",), "openbookqa": ("openbookqa",), "tiny": ("tinyBenchmarks",), "triviaqa": ("triviaqa",),
    "winogrande": ("winogrande",),
}  # fmt: skip
_LOCAL_BUILDERS = ("json", "csv", "parquet", "text", "arrow")  # a YAML file that names its own local files
_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE", "TRANSFORMERS_OFFLINE")
_TASK_SEEDS = (0, 1234)  # of `random` and NumPy while tasks are built, as `lm_eval` itself sets them


def require_lm_eval() -> None:
    """Checks that lm-evaluation-harness is installed, and makes it quiet.

    Raises:
        MissingExtraError: it is not; the message names the extra.
    """
    if importlib.util.find_spec("lm_eval") is None or importlib.util.find_spec("datasets") is None:
        raise MissingExtraError("lm_eval", "eval")
    os.environ.setdefault("TQDM_DISABLE", "1")  # our own progress is shown
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


@contextmanager
def offline(active: bool = True) -> Iterator[None]:
    """Keeps the Hugging Face libraries off the network, whether they are imported already or not."""
    if not active:
        yield
        return
    import datasets.config
    import huggingface_hub.constants

    places = [(huggingface_hub.constants, "HF_HUB_OFFLINE"), (datasets.config, "HF_HUB_OFFLINE"),
              (datasets.config, "HF_DATASETS_OFFLINE")]  # fmt: skip
    before = {name: os.environ.get(name) for name in _OFFLINE}
    values = [(module, name, getattr(module, name)) for module, name in places if hasattr(module, name)]
    os.environ.update(dict.fromkeys(_OFFLINE, "1"))
    for module, name, _ in values:
        setattr(module, name, True)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        for module, name, value in values:
            setattr(module, name, value)


@dataclass
class LoadedTasks:
    """What was asked for, ready to be scored.

    Args:
        tasks: name -> task object, without duplicates, in the order of the harness.
        groups: name -> group object, inner ones after outer ones.
        asked: names as given.
        shots: task -> solved examples.
        splits: task -> its local data; empty without a data folder.
        notes: task -> what a reader must know.
        checker: runs generated code, if a task has any.
        seed: drew the solved examples.
    """

    asked: list[str]
    seed: int = _TASK_SEEDS[1]
    tasks: dict[str, Any] = field(default_factory=dict)
    groups: dict[str, Any] = field(default_factory=dict)
    shots: dict[str, int] = field(default_factory=dict)
    splits: dict[str, Splits] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    checker: CodeChecker = field(default_factory=CodeChecker)


def load_tasks(
    names: Sequence[str],
    *,
    data: LocalData | None = None,
    shots: Mapping[str, int] | None = None,
    seed: int | None = None,
) -> LoadedTasks:
    """Builds tasks, groups and tags of the harness by name.

    Args:
        names: tasks, groups or tags of lm_eval, or paths of task YAML files.
        data: where their data are; None asks the hub, through `datasets`.
        shots: solved examples by name of a task, a group or a tag, and for `ALL_TASKS`; others keep the harness's.
        seed: draws the solved examples; by default the harness's own, 1234.

    Raises:
        InputError: a name is unknown, a task is there twice, or solved examples cannot be had.
        DataError: data are missing or are not as expected.
        EngineError: a task would run generated code outside of the sandbox; or this lm_eval is too old.
        MissingExtraError: lm_eval is not installed.
    """
    require_lm_eval()
    import numpy as np

    shots = dict(shots or {})
    manager = _manager(names)
    for name in names:
        _check_name(manager, name)
    random.seed(_TASK_SEEDS[0])
    np.random.seed(_TASK_SEEDS[1])
    loaded = LoadedTasks(list(names), _TASK_SEEDS[1] if seed is None else seed)
    with offline(data is not None):
        for name in names:
            _build(manager, name, loaded, data, shots)
    loaded.checker.facts()  # the tasks' own trial, when they are imported, is no result
    unused = [name for name in shots if name not in {ALL_TASKS, *names, *loaded.tasks, *loaded.groups}]
    if unused:
        known = [*names, *loaded.tasks]
        raise InputError(f"--shots names another task{did_you_mean(unused[0], known)}", value=unused[0])
    for name, task in loaded.tasks.items():
        pool = getattr(getattr(task, "sampler", None), "df", None)
        if pool is not None and loaded.shots[name] > len(pool):
            raise InputError(
                f"{name}: there are only {len(pool)} solved examples", value=loaded.shots[name],
                next=f"--shots {name}={len(pool)}",
            )  # fmt: skip
        task.set_fewshot_seed(seed=loaded.seed)
    return loaded


def _manager(names: Sequence[str]) -> Any:
    """Returns the harness's task manager over as few folders as hold the names."""
    import lm_eval.tasks
    from lm_eval.tasks import TaskManager

    root = Path(lm_eval.tasks.__file__).parent
    folders: dict[str, None] = {}
    for name in names:
        found = next((places for prefix, places in _FOLDERS.items() if name.startswith(prefix)), ())
        folders.update(dict.fromkeys(found))
    if folders or all(Path(name).is_file() for name in names):
        manager = TaskManager(include_defaults=False, include_path=[str(root / folder) for folder in folders])
        if all(name in manager.task_index or Path(name).is_file() for name in names):
            return manager
    return TaskManager()


def _check_name(manager: Any, name: str) -> None:
    if name in manager.task_index or Path(name).is_file():
        return
    raise InputError(
        f"lm-evaluation-harness has no such task{did_you_mean(name, manager.all_tasks)}", value=name,
        allowed=f"one of its {len(manager.all_tasks):,} tasks, groups and tags", next="lm_eval ls tasks",
    )  # fmt: skip


def _build(manager: Any, name: str, loaded: LoadedTasks, data: LocalData | None, shots: Mapping[str, int]) -> None:
    """Adds one task, or all tasks of one group or tag, to `loaded`."""
    from lm_eval.api.group import Group
    from lm_eval.tasks._factory import TaskFactory
    from lm_eval.tasks._index import TaskIndex

    class Factory(TaskFactory):
        def _load_full_config(self, entry: Any, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
            raw = entry.cfg or {}
            with _code_replaced(raw, loaded.checker), _tiny_package(raw):
                config = super()._load_full_config(entry, overrides)
            return config if "group" in config else _prepared(config, name, loaded, data, shots)

    if not hasattr(TaskFactory, "_load_full_config"):
        raise EngineError("this lm_eval is built otherwise than expected", allowed="lm_eval 0.4.13 or newer")
    entry = manager.task_index.get(name) or TaskIndex.entry_from_path(Path(name))
    try:
        made = Factory().build(entry, registry=manager.task_index)
    except CairnError:
        raise
    except Exception as error:  # datasets, jinja and the tasks' own code raise every kind
        step = "check the data folder" if data else "check the network, or give --data-dir FOLDER"
        text = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(f"{name}: the task cannot be built ({text})", next=step) from error
    for one in made if isinstance(made, list) else [made]:
        tasks = one.get_all_tasks() if isinstance(one, Group) else [one]
        groups = [one, *one.get_all_groups()] if isinstance(one, Group) else []
        for task in tasks:
            if task.task_name in loaded.tasks:
                raise InputError("a task is asked for twice", value=task.task_name, allowed="each task once")
            loaded.tasks[task.task_name] = task
        loaded.groups.update({group.name: group for group in groups})


def _prepared(
    config: dict[str, Any], asked: str, loaded: LoadedTasks, data: LocalData | None, shots: Mapping[str, int]
) -> dict[str, Any]:
    """Returns a task's configuration with its number of solved examples, its data and its aggregation settled."""
    name = config["task"]
    loaded.notes[name] = []
    config["num_fewshot"] = loaded.shots[name] = _shots(config, name, asked, shots, loaded.notes[name])
    if config.get("unsafe_code") and not _checked(config, loaded.checker):
        raise EngineError(
            "this task runs generated code in ways of its own", value=name, allowed="tasks that use code_eval",
            next="leave it out",
        )  # fmt: skip
    if name.startswith("tiny"):
        for metric in config.get("metric_list") or []:
            metric["aggregation"] = "mean"
    if data is not None and config.get("dataset_path") not in _LOCAL_BUILDERS:
        if "class" in config or config.get("custom_dataset") is not None:
            raise DataError(
                f"{name} reads its data with code of its own, which --data-dir does not reach", value=str(data.folder),
                next="run it without --data-dir, with a network",
            )  # fmt: skip
        evaluated = config.get("test_split") or config.get("validation_split")
        splits = Splits(
            data, name, config["dataset_path"], config.get("dataset_name"), evaluated, loaded.shots[name]
        )  # fmt: skip
        loaded.splits[name] = splits
        config["custom_dataset"] = lambda **_: splits
        config["dataset_kwargs"] = None
    return config


def _shots(config: Mapping[str, Any], name: str, asked: str, shots: Mapping[str, int], notes: list[str]) -> int:
    own = config.get("num_fewshot")
    named = next((shots[key] for key in (name, asked) if key in shots), None)
    wanted = shots.get(ALL_TASKS) if named is None else named
    if wanted is None or wanted == own:
        return own or 0
    if own == 0:  # the harness never overwrites a 0 that a task's own file says
        if named is not None:
            raise InputError(f"{name} takes no solved examples", value=f"--shots {name}={wanted}", allowed="0")
        notes.append(f"0 shots: the task takes no solved examples, --shots {wanted} is not for it")
        return 0
    return wanted


@contextmanager
def _code_replaced(raw: Mapping[str, Any], checker: CodeChecker) -> Iterator[None]:
    """While a task with generated code is built: `evaluate.load("code_eval")` gives the sandbox."""
    if not raw.get("unsafe_code"):
        yield
        return
    import evaluate

    known, real = set(sys.modules), evaluate.load

    def load(path: str, *rest: Any, **more: Any) -> Any:
        return checker if path == "code_eval" else real(path, *rest, **more)

    evaluate.load = load
    try:
        yield
    finally:
        evaluate.load = real
        _forget(known, lambda module: any(value is checker for value in vars(module).values()))


@contextmanager
def _tiny_package(raw: Mapping[str, Any]) -> Iterator[None]:
    """While a tiny* task is built: stands for the package `tinyBenchmarks`, which is on no index; never called."""
    if not str(raw.get("task", "")).startswith("tiny") or importlib.util.find_spec("tinyBenchmarks") is not None:
        yield
        return
    known = set(sys.modules)
    stand_in = sys.modules["tinyBenchmarks"] = types.ModuleType("tinyBenchmarks")
    try:
        yield
    finally:
        del sys.modules["tinyBenchmarks"]
        _forget(known, lambda module: getattr(module, "tb", None) is stand_in)


def _forget(known: set[str], ours: Callable[[Any], bool]) -> None:
    """Removes task modules that were imported with our stand-ins: the harness's own runs must not get them."""
    for name in set(sys.modules) - known:
        if name.startswith("lm_eval.tasks.") and ours(sys.modules[name]):
            del sys.modules[name]


def _checked(config: Mapping[str, Any], checker: CodeChecker) -> bool:
    """Returns True if a metric of the task hands its code to our checker."""
    metrics = [metric.get("metric") for metric in config.get("metric_list") or []]
    functions = [*metrics, config.get("process_results")]
    return any(
        value is checker for function in functions for value in getattr(function, "__globals__", {}).values()
    )
