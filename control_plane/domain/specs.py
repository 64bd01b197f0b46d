"""An automation's spec, as users write it, read into a plan. Every fault is a sentence that begins with its path.

What a later release will run (agent, sleep, wait_for_event, conditions, triggers ...) is refused here, at
publication, rather than ignored while a run goes on.
"""

import re
from collections.abc import Iterable
from typing import Any

from msgspec import Struct

from control_plane.domain import templates
from control_plane.domain.retries import DEFAULT_ATTEMPTS, DEFAULT_EXECUTION_TIMEOUT, MAX_ATTEMPTS
from control_plane.domain.times import parse_duration

MAX_STEPS = 1000
LONGEST_DURATION = 366 * 86_400
"""Seconds."""

INPUT_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
}

_NAME = re.compile(r"[A-Za-z0-9_-]{1,128}")
_LONGEST_TEXT = 256
_STEP_KINDS = ("action", "automation")
_LATER_STEP_KINDS = ("agent", "sleep", "wait_for_event")


class ActionPlan(Struct, frozen=True, kw_only=True):
    """A step that a worker executes. Durations are seconds; `delay` None: a failed attempt is retried at once."""

    key: str
    save_as: str
    action_name: str
    name: str | None = None
    parameters: dict[str, Any] | None = None
    inputs: dict[str, Any] | None = None
    environment_id: str | None = None
    max_attempts: int = DEFAULT_ATTEMPTS
    delay: float = 0.0
    non_retryable: tuple[str, ...] = ()
    timeout: float = DEFAULT_EXECUTION_TIMEOUT


class ChildPlan(Struct, frozen=True, kw_only=True):
    """A step that starts a run of another automation and goes on."""

    key: str
    save_as: str
    automation_handle: str
    name: str | None = None
    inputs: dict[str, Any] | None = None


StepPlan = ActionPlan | ChildPlan


class InputPlan(Struct, frozen=True, kw_only=True):
    """One declared input. `has_default` tells a default of null from none."""

    type: str | None = None
    required: bool = False
    has_default: bool = False
    default: Any = None


class Plan(Struct, frozen=True, kw_only=True):
    """A valid spec, ready to be executed: steps run in order."""

    steps: tuple[StepPlan, ...]
    inputs: dict[str, InputPlan]


def read(spec: Any) -> tuple[Plan | None, list[str]]:
    """The plan of a spec, or None and one sentence for every fault, in the order of the spec."""
    reader = _Reader()
    plan = reader.plan(spec)
    return (None if reader.errors else plan), reader.errors


def merge_inputs(plan: Plan, *layers: dict[str, Any] | None) -> tuple[dict[str, Any], list[str]]:
    """The run's inputs (declared defaults, then each layer over the one before) and what is wrong with them."""
    merged = {name: declared.default for name, declared in plan.inputs.items() if declared.has_default}
    for layer in layers:
        merged.update(layer or {})
    errors = []
    for name, declared in plan.inputs.items():
        if name not in merged:
            if declared.required:
                errors.append(f"inputs.{name}: required, and the automation has no default for it")
        elif declared.type is not None and not _is_of(declared.type, merged[name]):
            errors.append(f"inputs.{name}: expected {declared.type}, got {_kind(merged[name])}")
    return merged, errors


def _is_of(name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    if name == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, INPUT_TYPES[name])


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    return next(name for name in ("boolean", "integer", "number", "string", "object", "array") if _is_of(name, value))


class _Reader:
    """Walks one spec and collects faults."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.input_names: set[str] | None = None
        self.saved: set[str] = set()

    def fault(self, where: str, sentence: str) -> None:
        self.errors.append(f"{where}: {sentence}")

    # --- shapes

    def object(self, value: Any, where: str, known: Iterable[str]) -> dict[str, Any]:
        if not isinstance(value, dict):
            self.fault(where, f"expected an object, got {_kind(value)}")
            return {}
        names = tuple(known)
        for key in value:
            if key not in names:
                self.fault(
                    f"{where}.{key}" if where != "spec" else key, f"unknown key; expected one of {', '.join(names)}"
                )
        # Clients may send an explicit null for what they leave out.
        return {key: inner for key, inner in value.items() if inner is not None}

    def text(self, fields: dict[str, Any], key: str, where: str, *, missing: str | None = None) -> str | None:
        if key not in fields:
            if missing is not None:
                self.fault(f"{where}.{key}", f"required; {missing}")
            return None
        value = fields[key]
        if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_TEXT:
            self.fault(f"{where}.{key}", f"expected a text of 1 to {_LONGEST_TEXT} characters")
            return None
        if "\0" in value:
            self.fault(f"{where}.{key}", "expected a text without NUL characters")
            return None
        return value

    def name(self, fields: dict[str, Any], key: str, where: str, *, missing: str | None = None) -> str | None:
        value = self.text(fields, key, where, missing=missing)
        if value is not None and not _NAME.fullmatch(value):
            self.fault(f"{where}.{key}", f"expected letters, digits, _ and - (at most 128), got {value[:128]!r}")
            return None
        return value

    def duration(self, fields: dict[str, Any], key: str, where: str) -> float | None:
        value = fields.get(key)
        if value is None:
            return None
        if not isinstance(value, str):
            self.fault(f"{where}.{key}", f'expected a duration such as "30s", got {_kind(value)}')
            return None
        try:
            seconds = parse_duration(value)
        except ValueError as error:
            self.fault(f"{where}.{key}", str(error))
            return None
        if seconds > LONGEST_DURATION:
            self.fault(f"{where}.{key}", f"expected at most {LONGEST_DURATION // 3600}h")
            return None
        return seconds

    def json_object(self, fields: dict[str, Any], key: str, where: str) -> dict[str, Any] | None:
        value = fields.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.fault(f"{where}.{key}", f"expected an object, got {_kind(value)}")
            return None
        self.check_templates(value, f"{where}.{key}")
        return value

    def check_templates(self, value: Any, where: str) -> None:
        for place, path in templates.paths_in(value, where):
            if isinstance(path, templates.TemplateError):
                self.fault(place, str(path))
            elif path.keys and path.root == "inputs":
                if self.input_names and path.keys[0] not in self.input_names:
                    self.fault(place, f"{path} names an input that the spec does not declare")
            elif path.root == "context" and (not path.keys or path.keys[0] not in self.saved):
                self.fault(place, f"{path} names no save_as (or key) of an earlier step")

    # --- the parts

    def plan(self, spec: Any) -> Plan:
        known = (
            "schema_version", "name", "description", "steps", "inputs", "concurrency",
            "cleanup", "defaults", "repositories", "triggers",
        )  # fmt: skip
        fields = self.object(spec, "spec", known)
        if "schema_version" in fields and fields["schema_version"] != "1":
            self.fault("schema_version", 'expected "1"')
        if fields.get("concurrency", "allow") != "allow":
            self.fault("concurrency", 'this server supports "allow" only')
        self.not_yet(fields)
        inputs = self.inputs(fields.get("inputs", {}))
        steps = fields.get("steps")
        if not isinstance(steps, list) or not steps:
            self.fault("steps", "required; a list of at least one step")
            steps = []
        if len(steps) > MAX_STEPS:
            self.fault("steps", f"at most {MAX_STEPS} steps, got {len(steps)}")
            steps = []
        keys: set[str] = set()
        plans = [self.step(step, f"steps[{index}]", keys) for index, step in enumerate(steps)]
        return Plan(steps=tuple(plan for plan in plans if plan is not None), inputs=inputs)

    def not_yet(self, fields: dict[str, Any]) -> None:
        for key in ("cleanup", "repositories", "defaults"):
            if fields.get(key):
                self.fault(key, "this server does not support it; leave it out")
        triggers = fields.get("triggers") or []
        for index, trigger in enumerate(triggers if isinstance(triggers, list) else [triggers]):
            if not isinstance(trigger, dict) or trigger.get("kind") != "manual":
                self.fault(f"triggers[{index}]", 'this server supports kind "manual" only: start runs through the API')

    def inputs(self, value: Any) -> dict[str, InputPlan]:
        if not isinstance(value, dict):
            self.fault("inputs", f"expected an object, got {_kind(value)}")
            return {}
        self.input_names = set(value)
        declared = {}
        for name, raw in value.items():
            where = f"inputs.{name}"
            fields = self.object(raw, where, ("type", "required", "default", "description"))
            if not _NAME.fullmatch(name):
                self.fault(where, "expected a name of letters, digits, _ and -")
            kind = fields.get("type")
            if kind is not None and (not isinstance(kind, str) or kind not in INPUT_TYPES):
                self.fault(f"{where}.type", f"expected one of {', '.join(INPUT_TYPES)}, got {str(kind)[:128]!r}")
                kind = None
            if not isinstance(fields.get("required", False), bool):
                self.fault(f"{where}.required", "expected true or false")
            has_default = isinstance(raw, dict) and "default" in raw
            if kind is not None and fields.get("default") is not None and not _is_of(kind, fields["default"]):
                self.fault(f"{where}.default", f"expected {kind}, got {_kind(fields['default'])}")
            declared[name] = InputPlan(
                type=kind,
                required=fields.get("required") is True,
                has_default=has_default,
                default=fields.get("default"),
            )
        return declared

    def step(self, value: Any, where: str, keys: set[str]) -> StepPlan | None:
        fields = self.object(value, where, ("key", "name", "kind", "config", "input", "retry", "save_as", "timeout"))
        if not fields:
            return None
        key = self.name(fields, "key", where, missing="a name that no other step of the spec has")
        if key in keys:
            self.fault(f"{where}.key", f"{key!r} is the key of an earlier step")
        save_as = self.name(fields, "save_as", where) or key
        if save_as is not None and save_as in self.saved:
            self.fault(f"{where}.save_as", f"{save_as!r} is taken by an earlier step")
        plan = self.step_of_kind(fields, where, key or "", save_as or "")
        keys.update({key} if key else ())
        # Only now: a step does not see its own result.
        self.saved.update({save_as} if save_as else ())
        return plan

    def step_of_kind(self, fields: dict[str, Any], where: str, key: str, save_as: str) -> StepPlan | None:
        kind = fields.get("kind")
        if kind == "action":
            return self.action(fields, where, key, save_as)
        if kind == "automation":
            return self.child(fields, where, key, save_as)
        if kind in _LATER_STEP_KINDS:
            self.fault(f"{where}.kind", f"this server does not run {kind} steps; it runs {' and '.join(_STEP_KINDS)}")
        else:
            self.fault(f"{where}.kind", f"required; one of {', '.join(_STEP_KINDS)}")
        return None

    def action(self, fields: dict[str, Any], where: str, key: str, save_as: str) -> ActionPlan:
        place = f"{where}.config"
        known = ("action_name", "parameters", "environment_id", "execution_location")
        config = self.object(fields.get("config", {}), place, known)
        location = config.get("execution_location", "worker")
        if location not in ("worker", "environment"):
            self.fault(f"{place}.execution_location", 'this server runs actions on workers: expected "worker"')
        environment_id = self.text(config, "environment_id", place)
        if location == "environment" and environment_id is None:
            self.fault(f"{place}.environment_id", 'required when execution_location is "environment"')
        max_attempts, delay, non_retryable = self.retry(fields.get("retry", {}), f"{where}.retry")
        return ActionPlan(
            key=key,
            save_as=save_as,
            name=self.text(fields, "name", where),
            action_name=self.text(config, "action_name", place, missing="the name of the action to run") or "",
            parameters=self.json_object(config, "parameters", place),
            inputs=self.json_object(fields, "input", where),
            environment_id=environment_id,
            max_attempts=max_attempts,
            delay=delay,
            non_retryable=non_retryable,
            timeout=self.timeout(fields.get("timeout", {}), f"{where}.timeout"),
        )

    def child(self, fields: dict[str, Any], where: str, key: str, save_as: str) -> ChildPlan:
        place = f"{where}.config"
        config = self.object(fields.get("config", {}), place, ("automation_handle", "condition", "inputs"))
        if config.get("condition"):
            self.fault(f"{place}.condition", "this server does not support conditions; leave it out")
        for unfit in ("retry", "timeout", "input"):
            if fields.get(unfit):
                self.fault(f"{where}.{unfit}", "an automation step has none: its child run goes on by itself")
        return ChildPlan(
            key=key,
            save_as=save_as,
            name=self.text(fields, "name", where),
            automation_handle=self.text(
                config, "automation_handle", place, missing="the handle of the automation to start"
            )
            or "",
            inputs=self.json_object(config, "inputs", place),
        )

    def retry(self, value: Any, where: str) -> tuple[int, float, tuple[str, ...]]:
        fields = self.object(value, where, ("max_attempts", "delay", "non_retryable"))
        attempts = fields.get("max_attempts", DEFAULT_ATTEMPTS)
        if isinstance(attempts, bool) or not isinstance(attempts, int) or not 1 <= attempts <= MAX_ATTEMPTS:
            self.fault(f"{where}.max_attempts", f"expected a whole number from 1 to {MAX_ATTEMPTS}")
            attempts = DEFAULT_ATTEMPTS
        listed = fields.get("non_retryable", [])
        if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
            self.fault(f"{where}.non_retryable", "expected a list of error types")
            listed = []
        return attempts, self.duration(fields, "delay", where) or 0.0, tuple(listed)

    def timeout(self, value: Any, where: str) -> float:
        fields = self.object(value, where, ("duration", "on_timeout"))
        if fields.get("on_timeout", "fail") != "fail":
            self.fault(f"{where}.on_timeout", 'expected "fail"')
        duration = self.duration(fields, "duration", where)
        if duration is not None and duration <= 0:
            self.fault(f"{where}.duration", "expected more than nothing")
        return duration or DEFAULT_EXECUTION_TIMEOUT
