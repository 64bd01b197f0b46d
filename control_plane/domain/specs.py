"""An automation's spec, as users write it, read into a plan. Every fault is a sentence that begins with its path.

What a later release will run (agent steps, triggers ...) is refused here, at publication, rather than ignored while a
run goes on. docs/automations.md says what each part means.
"""

import re
from collections.abc import Iterable
from typing import Any, Literal, get_args

from msgspec import Struct

from control_plane.domain import conditions, templates
from control_plane.domain.conditions import Condition
from control_plane.domain.retries import DEFAULT_ATTEMPTS, DEFAULT_EXECUTION_TIMEOUT, MAX_ATTEMPTS, MOST_BACKOFF
from control_plane.domain.times import parse_duration, parse_time

MAX_STEPS = 1000
MAX_CLEANUP_STEPS = 20
LONGEST_DURATION = 366 * 86_400
"""Seconds."""

MOST_FAULTS = 100
"""Faults of a spec, or of a run's inputs, that are named."""

DEFAULT_WAIT_TIMEOUT = 30 * 86_400.0
"""Seconds that a step waits for its signal when the spec does not say."""

Concurrency = Literal["allow", "queue", "skip", "replace"]
"""What a new run does while another of the automation goes on: beside it, after it, not at all, or instead of it."""

INPUT_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
}

_NAME = re.compile(r"[A-Za-z0-9_-]{1,128}")
_EVENT_PATH = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_LONGEST_TEXT = 256
_MOST_NAMES = 20
_STEP_KINDS = ("action", "automation", "sleep", "wait_for_event")
_LATER_STEP_KINDS = ("agent",)
_STEP_KEYS = ("key", "name", "kind", "config", "input", "retry", "save_as", "timeout")
_ROOTS = frozenset({"inputs", "context"})


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
    backoff: float = 1.0
    max_delay: float | None = None
    non_retryable: tuple[str, ...] = ()
    timeout: float = DEFAULT_EXECUTION_TIMEOUT


class ChildPlan(Struct, frozen=True, kw_only=True):
    """A step that starts a run of another automation and goes on; it is skipped where the condition does not hold."""

    key: str
    save_as: str
    automation_handle: str
    name: str | None = None
    inputs: dict[str, Any] | None = None
    condition: Condition | None = None


class SleepPlan(Struct, frozen=True, kw_only=True):
    """A step that ends after `duration` or at `until`, whichever is set: the text of one, perhaps with templates."""

    key: str
    save_as: str
    name: str | None = None
    duration: str | None = None
    until: str | None = None


class WaitPlan(Struct, frozen=True, kw_only=True):
    """A step that a signal ends. `match` are values that the signal must have, by the path of each within it;
    `payload_mapping` is what the step's result is made of (None: it is the signal). `timeout` in seconds."""

    key: str
    save_as: str
    event_type: str
    name: str | None = None
    match: dict[str, Any] | None = None
    condition: Condition | None = None
    payload_mapping: dict[str, str] | None = None
    timeout: float = DEFAULT_WAIT_TIMEOUT


StepPlan = ActionPlan | ChildPlan | SleepPlan | WaitPlan


class InputPlan(Struct, frozen=True, kw_only=True):
    """One declared input. `has_default` tells a default of null from none."""

    type: str | None = None
    required: bool = False
    has_default: bool = False
    default: Any = None


class Plan(Struct, frozen=True, kw_only=True):
    """A valid spec, ready to be executed: steps run in order, then those of the cleanup.

    `wall_clock_timeout` are the seconds from a run's start until it has to be over, None: it may take what it takes.
    """

    steps: tuple[StepPlan, ...]
    inputs: dict[str, InputPlan]
    cleanup: tuple[ActionPlan, ...] = ()
    concurrency: Concurrency = "allow"
    wall_clock_timeout: float | None = None

    def at(self, seq: int) -> StepPlan:
        """The step that runs as this seq of a run: the cleanup's follow the others."""
        return (*self.steps, *self.cleanup)[seq - 1]


def read(spec: Any) -> tuple[Plan | None, list[str]]:
    """The plan of a spec, or None and one sentence for every fault, in the order of the spec."""
    reader = _Reader()
    plan = reader.plan(spec)
    errors = reader.faults.sentences
    return (None if errors else plan), errors


def unreadable(spec: dict[str, Any]) -> Plan:
    """What is left of a spec that this server refuses and an older one has published: a run of it can be ended."""
    kinds: tuple[Concurrency, ...] = get_args(Concurrency)
    found = next((kind for kind in kinds if kind == spec.get("concurrency")), kinds[0])
    return Plan(steps=(), inputs={}, concurrency=found)


def merge_inputs(plan: Plan, *layers: dict[str, Any] | None) -> tuple[dict[str, Any], list[str]]:
    """The run's inputs (declared defaults, then each layer over the one before) and what is wrong with them.

    Where the spec declares inputs the last layer, which is the caller's, may have no others.
    """
    merged = {name: declared.default for name, declared in plan.inputs.items() if declared.has_default}
    for layer in layers:
        merged.update(layer or {})
    faults = _Faults()
    if plan.inputs and layers:
        known = f"it declares {', '.join(list(plan.inputs)[:_MOST_NAMES])}"
        for name in layers[-1] or {}:
            if name not in plan.inputs:
                faults.add(f"inputs.{name}", f"the automation declares no such input; {known}")
    for name, declared in plan.inputs.items():
        if name not in merged:
            if declared.required:
                faults.add(f"inputs.{name}", "required, and the automation has no default for it")
        elif declared.type is not None and not _is_of(declared.type, merged[name]):
            faults.add(f"inputs.{name}", f"expected {declared.type}, got {_kind(merged[name])}")
    return merged, faults.sentences


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


class _Faults:
    """What is wrong with something, a sentence each: the first MOST_FAULTS, and how many more. A place or a sentence
    may quote names of any length, and is shortened: a spec of a megabyte must not have faults of many."""

    def __init__(self) -> None:
        self._first: list[str] = []
        self._more = 0

    def add(self, where: str, sentence: str) -> None:
        """Something is wrong at this place."""
        if len(self._first) < MOST_FAULTS:
            self._first.append(f"{_shortened(where, _LONGEST_TEXT)}: {_shortened(sentence, 2 * _LONGEST_TEXT)}")
        else:
            self._more += 1

    @property
    def sentences(self) -> list[str]:
        """Each begins with its place, but for the last one that counts what is left out."""
        return [*self._first, f"and {self._more} more faults"] if self._more else self._first


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


class _Reader:
    """Walks one spec and collects faults."""

    def __init__(self) -> None:
        self.faults = _Faults()
        self.input_names: set[str] | None = None
        self.saved: set[str] = set()

    def fault(self, where: str, sentence: str) -> None:
        self.faults.add(where, sentence)

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

    def literal(self, fields: dict[str, Any], key: str, where: str, *, missing: str | None = None) -> str | None:
        """A text that is read before there is anything to insert."""
        value = self.text(fields, key, where, missing=missing)
        if value is not None and "{{" in value:
            self.fault(
                f"{where}.{key}", "expected no template: inputs, parameters, times and conditions may have paths"
            )
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

    def check_templates(self, value: Any, where: str, roots: frozenset[str] = _ROOTS) -> None:
        for place, path in templates.paths_in(value, where):
            if isinstance(path, templates.TemplateError):
                self.fault(place, str(path))
            else:
                self.check_path(path, place, roots)

    def check_path(self, path: templates.Path, where: str, roots: frozenset[str]) -> None:
        if path.root not in roots:
            sentence = (
                f"{path}: .event is the signal of a wait_for_event step, known in its condition and payload_mapping"
            )
            self.fault(where, sentence)
        elif path.keys and path.root == "inputs":
            if self.input_names and path.keys[0] not in self.input_names:
                self.fault(where, f"{path} names an input that the spec does not declare")
        elif path.root == "context" and (not path.keys or path.keys[0] not in self.saved):
            self.fault(where, f"{path} names no save_as (or key) of an earlier step")

    def condition(self, fields: dict[str, Any], where: str, roots: frozenset[str] = _ROOTS) -> Condition | None:
        text = fields.get("condition")
        where = f"{where}.condition"
        if text is None or text == "":
            return None
        if not isinstance(text, str):
            self.fault(where, f"expected a text such as '.inputs.amount > 100', got {_kind(text)}")
            return None
        if "{{" in text:
            self.fault(where, "a condition has paths without braces, such as .inputs.amount > 100")
            return None
        try:
            found = conditions.parse(text)
        except conditions.ConditionError as error:
            self.fault(where, str(error))
            return None
        for path in found.paths():
            self.check_path(path, where, roots)
        return found

    def unfit(self, fields: dict[str, Any], where: str, names: Iterable[str], reason: str) -> None:
        for name in names:
            if fields.get(name):
                self.fault(f"{where}.{name}", reason)

    # --- the parts

    def plan(self, spec: Any) -> Plan:
        known = (
            "schema_version", "name", "description", "steps", "inputs", "concurrency",
            "cleanup", "defaults", "repositories", "triggers",
        )  # fmt: skip
        fields = self.object(spec, "spec", known)
        if "schema_version" in fields and fields["schema_version"] != "1":
            self.fault("schema_version", 'expected "1"')
        concurrency = fields.get("concurrency", "allow")
        if concurrency not in get_args(Concurrency):
            self.fault("concurrency", f"expected one of {', '.join(get_args(Concurrency))}")
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
        return Plan(
            steps=tuple(plan for plan in plans if plan is not None),
            inputs=inputs,
            cleanup=self.cleanup(fields.get("cleanup", []), keys),
            concurrency=concurrency,
            wall_clock_timeout=self.defaults(fields.get("defaults", {})),
        )

    def not_yet(self, fields: dict[str, Any]) -> None:
        if fields.get("repositories"):
            self.fault("repositories", "this server does not support it; leave it out")
        triggers = fields.get("triggers") or []
        for index, trigger in enumerate(triggers if isinstance(triggers, list) else [triggers]):
            if not isinstance(trigger, dict) or trigger.get("kind") != "manual":
                self.fault(f"triggers[{index}]", 'this server supports kind "manual" only: start runs through the API')
            elif trigger.get("concurrency_policy", "allow") != "allow":
                self.fault(
                    f"triggers[{index}].concurrency_policy", "set the spec's concurrency, which holds for all runs"
                )

    def defaults(self, value: Any) -> float | None:
        fields = self.object(value, "defaults", ("wall_clock_timeout", "agent_session", "environment"))
        self.unfit(
            fields, "defaults", ("agent_session", "environment"), "this server does not support it; leave it out"
        )
        timeout = self.duration(fields, "wall_clock_timeout", "defaults")
        if timeout is not None and timeout <= 0:
            self.fault("defaults.wall_clock_timeout", "expected more than nothing")
        return timeout

    def cleanup(self, value: Any, keys: set[str]) -> tuple[ActionPlan, ...]:
        if not isinstance(value, list):
            self.fault("cleanup", f"expected a list of steps, got {_kind(value)}")
            return ()
        if len(value) > MAX_CLEANUP_STEPS:
            self.fault("cleanup", f"at most {MAX_CLEANUP_STEPS} steps, got {len(value)}")
            return ()
        plans = []
        for index, raw in enumerate(value):
            where = f"cleanup[{index}]"
            known = tuple(key for key in _STEP_KEYS if key != "save_as")
            fields = self.object(raw, where, known)
            if fields.get("kind", "action") != "action":
                self.fault(f"{where}.kind", 'expected "action": a cleanup step runs an action')
            key = self.key(fields, where, keys)
            plans.append(self.action(fields, where, key, key))
        return tuple(plans)

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

    def key(self, fields: dict[str, Any], where: str, keys: set[str]) -> str:
        key = self.name(fields, "key", where, missing="a name that no other step of the spec has")
        if key in keys:
            self.fault(f"{where}.key", f"{key!r} is the key of an earlier step")
        keys.update({key} if key else ())
        return key or ""

    def step(self, value: Any, where: str, keys: set[str]) -> StepPlan | None:
        fields = self.object(value, where, _STEP_KEYS)
        if not isinstance(value, dict):
            return None
        key = self.key(fields, where, keys)
        save_as = self.name(fields, "save_as", where) or key
        if save_as and save_as in self.saved:
            self.fault(f"{where}.save_as", f"{save_as!r} is taken by an earlier step")
        plan = self.step_of_kind(fields, where, key, save_as)
        # Only now: a step does not see its own result.
        self.saved.update({save_as} if save_as else ())
        return plan

    def step_of_kind(self, fields: dict[str, Any], where: str, key: str, save_as: str) -> StepPlan | None:
        match fields.get("kind"):
            case "action":
                return self.action(fields, where, key, save_as)
            case "automation":
                return self.child(fields, where, key, save_as)
            case "sleep":
                return self.sleep(fields, where, key, save_as)
            case "wait_for_event":
                return self.wait(fields, where, key, save_as)
            case str() as kind if kind in _LATER_STEP_KINDS:
                self.fault(f"{where}.kind", f"this server does not run {kind} steps; it runs {', '.join(_STEP_KINDS)}")
            case None:
                self.fault(f"{where}.kind", f"required; one of {', '.join(_STEP_KINDS)}")
            case unknown:
                shown = repr(unknown) if isinstance(unknown, str) else _kind(unknown)
                self.fault(f"{where}.kind", f"expected one of {', '.join(_STEP_KINDS)}, got {shown}")
        return None

    def action(self, fields: dict[str, Any], where: str, key: str, save_as: str) -> ActionPlan:
        place = f"{where}.config"
        known = ("action_name", "parameters", "environment_id", "execution_location")
        config = self.object(fields.get("config", {}), place, known)
        location = config.get("execution_location", "worker")
        if location not in ("worker", "environment"):
            self.fault(f"{place}.execution_location", 'this server runs actions on workers: expected "worker"')
        environment_id = self.literal(config, "environment_id", place)
        if location == "environment" and environment_id is None:
            self.fault(f"{place}.environment_id", 'required when execution_location is "environment"')
        return ActionPlan(
            key=key,
            save_as=save_as,
            name=self.text(fields, "name", where),
            action_name=self.literal(config, "action_name", place, missing="the name of the action to run") or "",
            parameters=self.json_object(config, "parameters", place),
            inputs=self.json_object(fields, "input", where),
            environment_id=environment_id,
            timeout=self.timeout(fields.get("timeout", {}), f"{where}.timeout"),
            **self.retry(fields.get("retry", {}), f"{where}.retry"),
        )

    def child(self, fields: dict[str, Any], where: str, key: str, save_as: str) -> ChildPlan:
        place = f"{where}.config"
        config = self.object(fields.get("config", {}), place, ("automation_handle", "condition", "inputs"))
        reason = "an automation step has none: its child run goes on by itself"
        self.unfit(fields, where, ("retry", "timeout", "input"), reason)
        return ChildPlan(
            key=key,
            save_as=save_as,
            name=self.text(fields, "name", where),
            automation_handle=self.literal(
                config, "automation_handle", place, missing="the handle of the automation to start"
            )
            or "",
            inputs=self.json_object(config, "inputs", place),
            condition=self.condition(config, place),
        )

    def sleep(self, fields: dict[str, Any], where: str, key: str, save_as: str) -> SleepPlan:
        place = f"{where}.config"
        config = self.object(fields.get("config", {}), place, ("duration", "until"))
        self.unfit(fields, where, ("retry", "timeout", "input"), "a sleep step has none: it ends by itself")
        if len(config) != 1:
            self.fault(
                place, 'expected either a duration such as "90s" or until, a time such as "2027-06-30T12:00:00Z"'
            )
        duration, until = self.text(config, "duration", place), self.text(config, "until", place)
        if duration is not None and "{{" in duration:
            self.check_templates(duration, f"{place}.duration")
        elif duration is not None and self.duration(config, "duration", place) == 0:
            self.fault(f"{place}.duration", "expected more than nothing")
        if until is not None and "{{" in until:
            self.check_templates(until, f"{place}.until")
        elif until is not None:
            try:
                parse_time(until)
            except ValueError as error:
                self.fault(f"{place}.until", str(error))
        return SleepPlan(
            key=key, save_as=save_as, name=self.text(fields, "name", where), duration=duration, until=until
        )

    def wait(self, fields: dict[str, Any], where: str, key: str, save_as: str) -> WaitPlan:
        place = f"{where}.config"
        known = ("event_type", "match", "condition", "payload_mapping", "source_id")
        config = self.object(fields.get("config", {}), place, known)
        self.unfit(fields, where, ("retry", "input"), "a wait_for_event step has none: it waits until its timeout")
        reason = "this server has no event sources: a wait_for_event step is ended by a signal; leave it out"
        self.unfit(config, place, ("source_id",), reason)
        match = self.json_object(config, "match", place)
        for path in match or {}:
            if not _EVENT_PATH.fullmatch(path):
                sentence = "expected the path of a value in the signal, such as order.id"
                self.fault(f"{place}.match.{path}", sentence)
        return WaitPlan(
            key=key,
            save_as=save_as,
            name=self.text(fields, "name", where),
            event_type=self.literal(config, "event_type", place, missing="what the step waits for, for people to read")
            or "",
            match=match,
            condition=self.condition(config, place, _ROOTS | {"event"}),
            payload_mapping=self.payload_mapping(config, place),
            timeout=self.timeout(fields.get("timeout", {}), f"{where}.timeout", DEFAULT_WAIT_TIMEOUT),
        )

    def payload_mapping(self, config: dict[str, Any], where: str) -> dict[str, str] | None:
        mapping = config.get("payload_mapping")
        where = f"{where}.payload_mapping"
        if not mapping:
            return None
        if not isinstance(mapping, dict):
            self.fault(where, f"expected an object, got {_kind(mapping)}")
            return None
        for name, template in mapping.items():
            if not isinstance(template, str) or "{{" not in template:
                self.fault(f"{where}.{name}", "expected a template such as {{ .event.order.id }}")
                return None
        self.check_templates(mapping, where, _ROOTS | {"event"})
        return mapping

    def retry(self, value: Any, where: str) -> dict[str, Any]:
        """The fields of an ActionPlan."""
        fields = self.object(value, where, ("max_attempts", "delay", "backoff", "max_delay", "non_retryable"))
        attempts = fields.get("max_attempts", DEFAULT_ATTEMPTS)
        if isinstance(attempts, bool) or not isinstance(attempts, int) or not 1 <= attempts <= MAX_ATTEMPTS:
            self.fault(f"{where}.max_attempts", f"expected a whole number from 1 to {MAX_ATTEMPTS}")
            attempts = DEFAULT_ATTEMPTS
        listed = fields.get("non_retryable", [])
        if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
            self.fault(f"{where}.non_retryable", "expected a list of error types")
            listed = []
        backoff = fields.get("backoff", 1.0)
        if isinstance(backoff, bool) or not isinstance(backoff, int | float) or not 1 <= backoff <= MOST_BACKOFF:
            self.fault(f"{where}.backoff", f"expected a number from 1 to {MOST_BACKOFF:g}")
            backoff = 1.0
        return {
            "max_attempts": attempts,
            "delay": self.duration(fields, "delay", where) or 0.0,
            "backoff": float(backoff),
            "max_delay": self.duration(fields, "max_delay", where),
            "non_retryable": tuple(listed),
        }

    def timeout(self, value: Any, where: str, default: float = DEFAULT_EXECUTION_TIMEOUT) -> float:
        fields = self.object(value, where, ("duration", "on_timeout"))
        if fields.get("on_timeout", "fail") != "fail":
            self.fault(f"{where}.on_timeout", 'expected "fail"')
        duration = self.duration(fields, "duration", where)
        if duration is not None and duration <= 0:
            self.fault(f"{where}.duration", "expected more than nothing")
        return duration or default
