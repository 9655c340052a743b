"""An experiment on the disk: its data, and one training of everything per seed. Shared by compare and ablate.

    recipe ── prepare ──> OUT/recipe.yaml, stack.yaml, data/{train,valid,test}.jsonl, data/facts.json
                 └─ train_stack ──> OUT/seed-S/stack      adapters and comparators, as `cairn finetune` makes them
                      ├─ trained_seeds                    the trainings in such folders
                      └─ check_equal_training             the same parameters and tokens for all, or an error

Validation questions are training examples that no training sees, the same for every seed. `data/facts.json` is written
last: where it is, the data are whole.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cairn.config import StrictModel, save_config
from cairn.errors import ConfigError, DataError
from cairn.evaluation.systems import Question
from cairn.evaluation.tasks.own_data import question_row, row_question
from cairn.evaluation.tasks.registry import Task, TaskData, task_by_name, task_options
from cairn.files import sha256_file, sha256_json, write_json, write_text
from cairn.runs import read_jsonl
from cairn.stacks.runner import check_inputs
from cairn.stacks.spec import StackSpec, load_stack
from cairn.verbs.comparison.recipe import ExperimentRecipe

__all__ = [
    "FREE_SETTINGS",
    "RunSettings",
    "TrainedSeed",
    "check_equal_training",
    "check_questions",
    "evenly",
    "experiment_task",
    "prepare",
    "read_questions_file",
    "resolved_recipe",
    "run_settings",
    "solved_pool",
    "train_stack",
    "trained_seeds",
]

FREE_SETTINGS = {"seeds", "systems", "resamples", "shown_traces", "token_tolerance"}  # parts made before stay good

_POOL = 200  # training questions of each task from which the base's solved examples are drawn

Say = Callable[[str], Any]


@dataclass(frozen=True)
class TrainedSeed:
    """One training of a stack and its comparators.

    Args:
        seed: of the training.
        spec: the trained stack, with the folder it was read from.
        facts: its training.json.
    """

    seed: int
    spec: StackSpec
    facts: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        """The stack folder."""
        return self.spec.folder or Path()

    def sizes(self) -> dict[str, int]:
        """Returns trained parameters of every adapter and comparator."""
        rows = {**self.facts["adapters"], **self.facts["comparators"]}
        return {name: row["trained_parameters"] for name, row in rows.items()}


class RunSettings(StrictModel):
    """What decides the parts of a run folder; a second call must match it."""

    name: str
    stack: dict[str, Any]
    compare: dict[str, Any]
    task: dict[str, Any] | None = None
    files: dict[str, str] = {}


def run_settings(recipe: ExperimentRecipe) -> RunSettings:
    """Returns the part of a resolved recipe that decides its run folder: not the seeds, systems and resamples."""
    files = {name: getattr(recipe, name) for name in ("examples", "test") if getattr(recipe, name) is not None}
    files |= {f"{name}_sha256": sha256_file(file) for name, file in files.items() if Path(file).is_file()}
    return RunSettings(
        name=recipe.name, stack=recipe.stack.model_dump(mode="json", exclude={"examples"}),
        task=None if recipe.task is None else recipe.task.model_dump(mode="json"),
        files=files, compare=recipe.compare.model_dump(mode="json", exclude=FREE_SETTINGS),
    )  # fmt: skip


def experiment_task(recipe: ExperimentRecipe) -> Task:
    """Returns the recipe's task; two files of your own are the task `examples`.

    Raises:
        ConfigError: there is no such task, or the recipe has neither a task nor two files.
    """
    if recipe.task is not None:
        return task_by_name(recipe.task.name)
    missing = [name for name in ("examples", "test") if getattr(recipe, name) is None]
    if missing:
        raise ConfigError(
            f"recipe {recipe.name}", [f"{name}: required for a comparison without a task" for name in missing],
            next="name a file of examples, or a task",
        )  # fmt: skip
    return task_by_name("examples")


def resolved_recipe(recipe: ExperimentRecipe) -> ExperimentRecipe:
    """Returns the recipe with every path absolute, so that a copy of it in another folder means the same.

    Raises:
        ConfigError: the task's options are wrong.
    """
    changes: dict[str, Any] = {}
    if recipe.task is not None:
        task_options(task_by_name(recipe.task.name), recipe.task.options, f"recipe {recipe.name}")
        folder = str(recipe.place(recipe.task.folder).resolve())
        changes["task"] = recipe.task.model_copy(update={"folder": folder})
    for name in ("examples", "test"):
        value = getattr(recipe, name)
        if value is not None:
            changes[name] = str(recipe.place(value).resolve())
    base = Path(recipe.stack.base_place).expanduser()
    place = str(base.resolve()) if base.is_dir() else recipe.stack.base
    stack = recipe.stack.model_copy(update={"examples": None, "base": place})
    made = recipe.model_copy(update={**changes, "stack": stack})
    made._folder = recipe._folder
    return made


def prepare(recipe: ExperimentRecipe, out: Path) -> dict[str, Any]:
    """Writes the data of an experiment, unless an earlier session did.

    Args:
        recipe: as `resolved_recipe` gives it.
        out: the run folder.

    Returns:
        data/facts.json: what the task says of its data, counts, hashes.

    Raises:
        ConfigError: the task's options are wrong.
        DataError: the data cannot be used, or test questions do not fit the stack's inputs.
        StorageError: the folder cannot be written.
    """
    data = out / "data"
    save_config(recipe, out / "recipe.yaml")
    save_config(recipe.stack.model_copy(update={"examples": "data/train.jsonl"}), out / "stack.yaml")
    if (data / "facts.json").exists():
        return json.loads((data / "facts.json").read_text(encoding="utf-8"))
    task = experiment_task(recipe)
    loaded = _load(recipe, task)
    test = evenly(loaded.test, recipe.compare.test_questions)
    check_questions(test, recipe.stack)
    train, valid = _hold_out(loaded.train, recipe.compare.validation_questions, recipe.compare.seed)
    seen = {_inputs_key(row["inputs"]) for row in loaded.train}
    files = {"train": train, "valid": valid, "test": [question_row(question) for question in test]}
    for name, rows in files.items():
        write_text(data / f"{name}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    facts = {
        "task": task.name,
        **loaded.facts,
        "questions": {name: len(rows) for name, rows in files.items()},
        "test_questions_left_out": len(loaded.test) - len(test),
        "test_questions_also_in_training": sum(_inputs_key(question.inputs) in seen for question in test),
        "sha256": {name: sha256_file(data / f"{name}.jsonl") for name in files},
    }
    write_json(data / "facts.json", facts)
    return facts


def _load(recipe: ExperimentRecipe, task: Task) -> TaskData:
    if recipe.task is not None:
        folder = Path(recipe.task.folder)
        if not folder.is_dir():
            raise DataError(
                f"no such folder with the data of task {task.name}", value=str(folder),
                next="give yours with --set task.folder=FOLDER",
            )  # fmt: skip
        return task.load(folder, task_options(task, recipe.task.options, f"recipe {recipe.name}"))
    if recipe.examples and not Path(recipe.examples).exists() and recipe.distill is not None:
        raise DataError(
            "the stage examples are not there yet", value=recipe.examples, next="make them with `cairn distill RECIPE`"
        )
    return task.load(Path("/"), task_options(task, {"train": recipe.examples, "test": recipe.test}, recipe.name))


def check_questions(test: Sequence[Question], stack: StackSpec) -> None:
    """Checks that there are test questions, each with an id of its own and the stack's inputs.

    Raises:
        DataError: there is none, or ids are not unique.
        InputError: a question lacks an input or has one that the stack does not know.
    """
    if not test:
        raise DataError("the task has no test question", allowed="at least one", next="check the options of the task")
    twice = [name for name, count in Counter(question.id for question in test).items() if count > 1]
    if twice:
        raise DataError("ids of test questions are not unique", value=twice[:3], allowed="each id once")
    for question in test:
        check_inputs(stack, question.inputs, f"test question {question.id}: ")


def _inputs_key(inputs: Mapping[str, str]) -> str:
    return sha256_json(sorted(inputs.items()))


def _hold_out(
    rows: Sequence[dict[str, Any]], wanted: int, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns (training, validation) rows in their order; whole groups are drawn."""
    most = min(wanted, len(rows) // 5)
    members = Counter(str(row.get("group", row.get("id"))) for row in rows)
    names = sorted(members)
    random.Random(f"validation-{seed}").shuffle(names)
    held: set[str] = set()
    count = 0
    for name in names:
        if count + members[name] <= most:
            held.add(name)
            count += members[name]
        if count == most:
            break
    split = [str(row.get("group", row.get("id"))) in held for row in rows]
    return [r for r, out in zip(rows, split, strict=True) if not out], [
        r for r, out in zip(rows, split, strict=True) if out
    ]


def evenly(questions: Sequence[Any], most: int | None) -> list[Any]:
    """Returns at most `most` of them, in their order: one drawn from each of as many equal stretches.

    Every n-th would do for no list that repeats itself: stories with five questions each would always give the first.
    """
    if most is None or len(questions) <= most:
        return list(questions)
    draw, count = random.Random("evenly"), len(questions)
    return [questions[draw.randrange(n * count // most, (n + 1) * count // most)] for n in range(most)]


def read_questions_file(file: Path) -> list[Question]:
    """Returns the questions of a file that `prepare` wrote, or of examples in the same form."""
    return [row_question(row, f"{file}, line {number}") for number, row in enumerate(read_jsonl(file), start=1)]


def solved_pool(train: Sequence[Question], seed: int) -> list[Question]:
    """Returns training questions for solved examples: all of a small task, a draw of a large one."""
    by_task: dict[str, list[Question]] = {}
    for question in train:
        by_task.setdefault(question.task, []).append(question)
    draw = random.Random(f"pool-{seed}")
    return [one for asked in by_task.values() for one in (asked if len(asked) <= _POOL else draw.sample(asked, _POOL))]


def train_stack(
    spec: StackSpec,
    examples: Path,
    folder: Path,
    seed: int,
    *,
    comparators: bool = True,
    jobs: int = 1,
    device: str = "auto",
    say: Say = lambda text: None,
) -> TrainedSeed:
    """Trains a stack with one seed, unless an earlier session did.

    Args:
        spec: the stack; its training seed is replaced.
        examples: file of stage examples.
        folder: the stack folder to make.
        seed: of all training.
        comparators: also train the single adapters.
        jobs: adapters trained side by side.
        device: see `bases.pick_device`.
        say: takes lines for the reader.

    Raises:
        ConfigError, DataError, CheckpointError, TokenizerError, StorageError: see `finetune_stack`.
    """
    from cairn.verbs.finetune import finetune_stack

    trained = spec.model_copy(
        update={"training": {**spec.training, "seed": seed}, "examples": str(examples.resolve())}
    )
    trained._folder = None
    facts_file = folder / "training.json"
    if not _whole(folder, trained, examples, comparators):
        finetune_stack(
            trained, folder, comparators=comparators, jobs=jobs, bundle_base=False, device=device, say=say
        )
    return TrainedSeed(seed, load_stack(folder), json.loads(facts_file.read_text(encoding="utf-8")))


def _whole(folder: Path, spec: StackSpec, examples: Path, comparators: bool) -> bool:
    """Returns True if the folder was finished from this stack and these examples, so that nothing need be loaded."""
    if not (folder / "stack.yaml").exists() or not (folder / "training.json").exists():
        return False
    facts = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    there = load_stack(folder)
    same = {"base", "examples"}
    return (
        there.model_dump(exclude=same) == spec.model_dump(exclude=same)
        and facts["examples"]["sha256"] == sha256_file(examples)
        and (bool(facts["comparators"]) or not comparators)
    )


def trained_seeds(stacks: Sequence[Path]) -> list[TrainedSeed]:
    """Returns the trainings in some stack folders, which must differ in their seeds only.

    Raises:
        ConfigError: a folder holds no trained stack, or another one than the first.
    """
    seeds: list[TrainedSeed] = []
    faults = []
    for place in stacks:
        spec, file = load_stack(place), place / "training.json"
        if not file.exists():
            raise ConfigError(str(place), ["no trained stack: training.json is missing"], next="cairn finetune STACK")
        facts = json.loads(file.read_text(encoding="utf-8"))
        seeds.append(TrainedSeed(facts["settings"]["seed"], spec, facts))
        own, first = _definition(seeds[-1]), _definition(seeds[0])
        faults += [f"{key} differs from that of {stacks[0]}" for key in own if own[key] != first[key]]
    numbers = [seed.seed for seed in seeds]
    if len(set(numbers)) != len(numbers):
        faults.append(f"seeds {numbers} are not distinct")
    if faults:
        raise ConfigError(", ".join(map(str, stacks)), faults, next="give one folder a seed of the same stack")
    return seeds


def _definition(seed: TrainedSeed) -> dict[str, Any]:
    spec = seed.spec.model_dump(mode="json", exclude={"base", "examples", "training"})
    training = {key: value for key, value in seed.facts["settings"].items() if key != "seed"}
    return {**spec, "training": training, "examples": seed.facts["examples"]["sha256"]}


def check_equal_training(seeds: Sequence[TrainedSeed], tolerance: float) -> dict[str, Any]:
    """Checks that stack and single adapters were trained with equal parameters and tokens, by what was counted.

    Args:
        seeds: the trainings.
        tolerance: by how much training tokens may differ, as a share of the stack's.

    Returns:
        For the result: trained_parameters, training_tokens by system (means of the seeds), and the tolerance.

    Raises:
        ConfigError: they are not equal; every difference is listed.
    """
    faults = []
    rows: dict[str, list[tuple[int, int]]] = {}
    for one in seeds:
        sides = {"stack": one.facts["stack"], **one.facts["comparators"]}
        wanted = (sides["stack"]["trained_parameters"], sides["stack"]["training_tokens"])
        for name, row in sides.items():
            parameters, tokens = row["trained_parameters"], row["training_tokens"]
            rows.setdefault(name, []).append((parameters, tokens))
            if parameters != wanted[0]:
                faults.append(
                    f"seed {one.seed}: {name} has {parameters:,} trained parameters, the stack {wanted[0]:,}"
                )
            if abs(tokens - wanted[1]) > tolerance * wanted[1]:
                faults.append(
                    f"seed {one.seed}: {name} was trained on {tokens:,} tokens, the stack on {wanted[1]:,}, "
                    f"allowed: {100 * tolerance:g}% more or less"
                )
    if faults:
        raise ConfigError(
            "the training is not equal", faults,
            next="give all adapters the same lora.targets, raise training.tokens_total, or set compare.token_tolerance",
        )  # fmt: skip
    return {
        "trained_parameters": {name: values[0][0] for name, values in rows.items()},
        "training_tokens": {name: round(sum(v[1] for v in values) / len(values)) for name, values in rows.items()},
        "token_tolerance": tolerance,
    }
