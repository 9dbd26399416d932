"""Tasks of one's own in a config: from the names of descriptions to the descriptions themselves, complete."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unistd.files import kind
from unistd.messages import shown
from unistd.schema import checked
from unistd.tasks import TASKS, Task, get_task
from unistd.tasks.own import OwnTask, check_name, complete, own_task
from unistd.tasks.spec import nearest
from unistd.training.yaml_text import ConfigError, read_tree

DESCRIPTIONS = Path(__file__).parent.parent / "configs" / "data"


def task_named(word: str, root: str | None) -> Task:
    """One of the ten tasks, or that of a description (see `describe_own_tasks`); raises ValueError, ConfigError."""
    tree: dict[str, Any] = {"tasks": [word], "data": {"root": root}}
    describe_own_tasks(tree, Path("tasks"))
    (name,) = tree["tasks"]
    return get_task(name) if name in TASKS else own_task(name, OwnTask.model_validate(tree["own_tasks"][name]))


def describe_own_tasks(tree: dict[str, Any], config: Path) -> None:
    """Puts the description of each task of one's own that `tasks` names into the tree, as `own_tasks.NAME`.

    A name stands for a YAML file (mine.yaml, from the current folder on), a description that is shipped, one that the
    tree has, or a folder of that name below data.root; keys that the tree has of it go before those of the file. What
    is left open is found out from the files of data.

    Args:
        tree: of a config, changed in place.
        config: its file; where data.root is null, files of a description in the tree itself are relative to its folder.

    Raises:
        ConfigError: a name of nothing, or a description that is not there, broken or incomplete.
        DataFileError: files of data that are not there, or not as described.
    """
    tasks, data = tree.get("tasks"), tree.get("data")
    root = data.get("root") if isinstance(data, dict) else None
    own = tree.get("own_tasks", {})
    if not isinstance(tasks, list) or not isinstance(own, dict) or not isinstance(root, str | None):
        return  # the check of the config says so
    for place, word in enumerate(tasks):
        if not isinstance(word, str) or word in TASKS:
            continue
        name, source, description, base = _description(word, own.get(word), root, config)
        if description is None:
            known = [*TASKS, *own, *(path.stem for path in DESCRIPTIONS.glob("*.yaml"))]
            raise ConfigError(f"{config}: key 'tasks': unknown task {shown(word)}{nearest(word, known)}")
        keys = own.get(name, {})
        if not isinstance(keys, dict):
            continue
        task = _checked(name, description | keys, source)
        tasks[place] = name
        tree.setdefault("own_tasks", {})[name] = _complete(name, task, root, base, source).model_dump()


def _description(
    word: str, own: Any, root: str | None, config: Path
) -> tuple[str, str, dict[str, Any] | None, Path | None]:
    """Name, where it is from, the keys of the description (None: there is none), and the folder of its files."""
    if word.endswith((".yaml", ".yml")):
        path = Path(word)
        if (what := kind(path)) != "a file":
            found = "not a file" if what == "nothing" else f"{what}, not a file"
            raise ConfigError(f"{config}: key 'tasks': no description {shown(word, 400)}: {found}")
        description = read_tree(path)
        name = description.pop("name", path.stem)
        if not isinstance(name, str):
            raise ConfigError(f"{path}: key 'name': expected a word, found {shown(name)}")
        return name, str(path), description, path.parent
    if isinstance(own, dict) and "files" in own:
        return word, f"key 'own_tasks.{word:.40}'", {}, config.parent
    shipped = DESCRIPTIONS / f"{word}.yaml"
    if word.isidentifier() and kind(shipped) == "a file":
        return word, str(shipped), read_tree(shipped), None
    if word.isidentifier() and root and os.path.isdir(os.path.join(root, word)):
        return word, f"folder {os.path.join(root, word)}", {"files": word}, None
    return word, "", None, None


def _checked(name: str, keys: Mapping[str, Any], source: str) -> OwnTask:
    try:
        check_name(name)
        if name in TASKS:
            raise ValueError(f"name {name!r} is that of one of the ten tasks, expected one of its own")
        return checked(OwnTask, keys)
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from None


def _complete(name: str, task: OwnTask, root: str | None, base: Path | None, source: str) -> OwnTask:
    if root is None and base is None:
        raise ConfigError(f"{source}: data.root is null, expected the folder that files of task {name!r} lie below")
    if root is None:
        task = task.model_copy(update={"files": [os.path.abspath(base / pattern) for pattern in task.patterns]})
    return complete(task, Path(base if root is None else root))
