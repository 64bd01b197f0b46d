import pytest

from control_plane.domain import specs
from control_plane.domain.specs import ActionPlan, ChildPlan


def action(key="one", **fields):
    return {"key": key, "kind": "action", "config": {"action_name": "print"}, **fields}


def sleep(**config):
    return {"key": "s", "kind": "sleep", "config": config}


def wait(**config):
    return {"key": "w", "kind": "wait_for_event", "config": {"event_type": "approved", **config}}


def errors_of(spec):
    plan, errors = specs.read(spec)
    assert (plan is None) == bool(errors)
    return errors


def test_a_whole_spec_becomes_a_plan():
    plan, errors = specs.read(
        {
            "schema_version": "1",
            "name": "A",
            "inputs": {"url": {"type": "string", "required": True}, "width": {"type": "integer", "default": 640}},
            "steps": [
                action(
                    "fetch",
                    name="Fetch it",
                    save_as="page",
                    retry={
                        "max_attempts": 3,
                        "delay": "1m30s",
                        "backoff": 2,
                        "max_delay": "5m",
                        "non_retryable": ["NotThere"],
                    },
                    timeout={"duration": "500ms", "on_timeout": "fail"},
                    input={"a": "{{ .inputs.width }}"},
                ),
                {
                    "key": "child",
                    "kind": "automation",
                    "config": {"automation_handle": "other", "inputs": {"page": "{{ .context.page.body }}"}},
                },
            ],
        }
    )
    assert errors == []
    assert plan.steps == (
        ActionPlan(
            key="fetch",
            save_as="page",
            action_name="print",
            name="Fetch it",
            inputs={"a": "{{ .inputs.width }}"},
            max_attempts=3,
            delay=90.0,
            backoff=2.0,
            max_delay=300.0,
            non_retryable=("NotThere",),
            timeout=0.5,
        ),
        ChildPlan(key="child", save_as="child", automation_handle="other", inputs={"page": "{{ .context.page.body }}"}),
    )
    assert plan.inputs["width"].default == 640


def test_a_client_may_send_null_for_what_it_leaves_out():
    plan, errors = specs.read(
        {"steps": [action(retry=None, timeout=None, name=None, save_as=None)], "inputs": {"x": {"default": None}}}
    )
    assert errors == []
    assert plan.steps[0].max_attempts == 1
    assert plan.inputs["x"].has_default


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ([], "spec: expected an object, got array"),
        ({}, "steps: required"),
        ({"steps": []}, "steps: required"),
        ({"steps": [action()], "step": 1}, "step: unknown key; expected one of schema_version"),
        ({"steps": [action()], "concurrency": "two"}, "concurrency: expected one of allow, queue, skip, replace"),
        ({"steps": [action()], "repositories": [{}]}, "repositories: this server does not support it"),
        ({"steps": [action()], "defaults": {"environment": {"x": 1}}}, "defaults.environment: this server does not"),
        ({"steps": [action()], "defaults": {"wall_clock_timeout": "0s"}}, "defaults.wall_clock_timeout: expected more"),
        ({"steps": [action()], "cleanup": {}}, "cleanup: expected a list of steps, got object"),
        ({"steps": [action()], "cleanup": [action()]}, "cleanup[0].key: 'one' is the key of an earlier step"),
        ({"steps": [action()], "cleanup": [action("c", save_as="x")]}, "cleanup[0].save_as: unknown key"),
        ({"steps": [action()], "cleanup": [action("c", kind="sleep")]}, 'cleanup[0].kind: expected "action"'),
        ({"steps": [action()], "cleanup": [action(f"c{n}") for n in range(21)]}, "cleanup: at most 20 steps, got 21"),
        (
            {"steps": [action()], "triggers": [{"kind": "manual", "concurrency_policy": "skip"}]},
            "triggers[0].concurrency_policy: set the spec's concurrency",
        ),
        ({"steps": [action()], "triggers": [{"kind": "schedule"}]}, "triggers[0]: this server supports kind"),
        ({"steps": [{"key": "a", "kind": "action", "config": {}}]}, "steps[0].config.action_name: required"),
        ({"steps": [action(retires=1)]}, "steps[0].retires: unknown key"),
        ({"steps": [{"kind": "action", "config": {"action_name": "x"}}]}, "steps[0].key: required"),
        ({"steps": [action("a b")]}, "steps[0].key: expected letters, digits, _ and -"),
        ({"steps": [action(), action()]}, "steps[1].key: 'one' is the key of an earlier step"),
        ({"steps": [action("a", save_as="x"), action("b", save_as="x")]}, "steps[1].save_as: 'x' is taken"),
        (
            {"steps": [action(retry={"max_attempts": 11})]},
            "steps[0].retry.max_attempts: expected a whole number from 1 to 10",
        ),
        ({"steps": [action(retry={"max_attempts": True})]}, "steps[0].retry.max_attempts: expected"),
        ({"steps": [action(retry={"delay": "soon"})]}, "steps[0].retry.delay: expected a duration"),
        ({"steps": [action(retry={"backoff": 0.5})]}, "steps[0].retry.backoff: expected a number from 1 to 100"),
        ({"steps": [action(retry={"backoff": True})]}, "steps[0].retry.backoff: expected a number"),
        ({"steps": [action(retry={"max_delay": 5})]}, "steps[0].retry.max_delay: expected a duration"),
        ({"steps": [action(retry={"delay": 5})]}, "steps[0].retry.delay: expected a duration"),
        ({"steps": [action(timeout={"duration": "0s"})]}, "steps[0].timeout.duration: expected more than nothing"),
        ({"steps": [action(timeout={"duration": "99999h"})]}, "steps[0].timeout.duration: expected at most 8784h"),
        ({"steps": [action(timeout={"on_timeout": "skip"})]}, 'steps[0].timeout.on_timeout: expected "fail"'),
        (
            {"steps": [{"key": "a", "kind": "agent", "config": {}}]},
            "steps[0].kind: this server does not run agent steps; it runs action, automation, sleep, wait_for_event",
        ),
        (
            {"steps": [{"key": "a", "kind": "dance", "config": {}}]},
            "steps[0].kind: expected one of action, automation, sleep, wait_for_event, got 'dance'",
        ),
        ({"steps": [{}]}, "steps[0].kind: required; one of action, automation, sleep, wait_for_event"),
        ({"steps": [action(), {"key": None}]}, "steps[1].key: required"),
        (
            {"steps": [action(config={"action_name": "{{ .inputs.a }}"})]},
            "steps[0].config.action_name: expected no template",
        ),
        (
            {"steps": [{"key": "a", "kind": "automation", "config": {"automation_handle": "{{ .inputs.h }}"}}]},
            "steps[0].config.automation_handle: expected no template",
        ),
        ({"steps": [wait(event_type="{{ .inputs.e }}")]}, "steps[0].config.event_type: expected no template"),
        (
            {"steps": [action(config={"action_name": "a", "parameters": {"{{ .inputs.a }}": 1}})]},
            "steps[0].config.parameters.{{ .inputs.a }}: the name of a value cannot be a template",
        ),
        ({"steps": [sleep()]}, "steps[0].config: expected either a duration"),
        (
            {"steps": [sleep(duration="1s", until="2030-01-01T00:00:00Z")]},
            "steps[0].config: expected either a duration",
        ),
        ({"steps": [sleep(duration="soon")]}, "steps[0].config.duration: expected a duration"),
        ({"steps": [sleep(duration="0s")]}, "steps[0].config.duration: expected more than nothing"),
        ({"steps": [sleep(duration="9999h")]}, "steps[0].config.duration: expected at most 8784h"),
        ({"steps": [sleep(until="2030-01-01T00:00:00")]}, "steps[0].config.until: expected a time"),
        ({"steps": [sleep(until="2030-01-01")]}, "steps[0].config.until: expected a time"),
        ({"steps": [sleep(duration="{{ .event.x }}")]}, "steps[0].config.duration: .event.x: .event is the signal"),
        (
            {"steps": [{**sleep(duration="1s"), "timeout": {"duration": "1s"}}]},
            "steps[0].timeout: a sleep step has none",
        ),
        ({"steps": [wait(event_type=None)]}, "steps[0].config.event_type: required"),
        ({"steps": [wait(source_id="x")]}, "steps[0].config.source_id: this server has no event sources"),
        ({"steps": [wait(match={"a b": 1})]}, "steps[0].config.match.a b: expected the path of a value"),
        ({"steps": [wait(match={"a": "{{ .event.b }}"})]}, "steps[0].config.match.a: .event.b: .event is the signal"),
        ({"steps": [wait(condition=".event.a = 1")]}, "steps[0].config.condition: '= 1' is not understood"),
        ({"steps": [wait(condition=".context.x")]}, "steps[0].config.condition: .context.x names no save_as"),
        ({"steps": [wait(payload_mapping={"a": "b"})]}, "steps[0].config.payload_mapping.a: expected a template"),
        ({"steps": [wait(payload_mapping=["b"])]}, "steps[0].config.payload_mapping: expected an object"),
        ({"steps": [{**wait(), "retry": {"max_attempts": 2}}]}, "steps[0].retry: a wait_for_event step has none"),
        ({"steps": [{"key": "a", "kind": "automation", "config": {}}]}, "steps[0].config.automation_handle: required"),
        (
            {"steps": [{"key": "a", "kind": "automation", "config": {"automation_handle": "b", "condition": "x"}}]},
            "steps[0].config.condition: expected a path such as .inputs.a",
        ),
        (
            {
                "steps": [
                    {"key": "a", "kind": "automation", "config": {"automation_handle": "b", "condition": ".event.x"}}
                ]
            },
            "steps[0].config.condition: .event.x: .event is the signal",
        ),
        (
            {
                "steps": [
                    {"key": "a", "kind": "automation", "config": {"automation_handle": "b", "condition": "{{ .a }}"}}
                ]
            },
            "steps[0].config.condition: a condition has paths without braces",
        ),
        (
            {"steps": [{**action(), "config": {"action_name": "p", "execution_location": "managed"}}]},
            "steps[0].config.execution_location: this server runs actions on workers",
        ),
        (
            {"steps": [{**action(), "config": {"action_name": "p", "parameters": {"a": ["{{ .env.x }}"]}}}]},
            "steps[0].config.parameters.a[0]: unknown root .env",
        ),
        (
            {"steps": [{**action(), "config": {"action_name": "p", "parameters": {"a": "{{ .inputs.x | upper }}"}}}]},
            "steps[0].config.parameters.a: only a path",
        ),
        (
            {"steps": [{**action(), "config": {"action_name": "p", "parameters": {"a": "x {{ .inputs.x"}}}]},
            'steps[0].config.parameters.a: "{{" without "}}"',
        ),
        (
            {"steps": [{**action(), "config": {"action_name": "p", "parameters": {"a": "{{ .context.one }}"}}}]},
            "steps[0].config.parameters.a: .context.one names no save_as",
        ),
        (
            {"inputs": {"y": {}}, "steps": [action(input={"a": "{{ .inputs.x }}"})]},
            "steps[0].input.a: .inputs.x names an input that the spec does not declare",
        ),
        ({"inputs": {"y": {"type": "int"}}, "steps": [action()]}, "inputs.y.type: expected one of string, integer"),
        (
            {"inputs": {"y": {"type": "integer", "default": "z"}}, "steps": [action()]},
            "inputs.y.default: expected integer, got string",
        ),
        ({"inputs": {"y": {"required": "yes"}}, "steps": [action()]}, "inputs.y.required: expected true or false"),
    ],
)
def test_a_fault_is_a_sentence_that_begins_with_its_path(spec, sentence):
    errors = errors_of(spec)
    assert any(error.startswith(sentence) for error in errors), errors


def test_all_faults_are_told_at_once():
    errors = errors_of({"steps": [{"key": "a", "kind": "action", "config": {}}, {"key": "a", "kind": "agent"}]})
    assert [error.split(":")[0] for error in errors] == [
        "steps[0].config.action_name",
        "steps[1].key",
        "steps[1].save_as",
        "steps[1].kind",
    ]


def plan_with(inputs):
    plan, _ = specs.read({"steps": [action()], "inputs": inputs})
    return plan


def test_inputs_are_merged_in_layers():
    plan = plan_with({"a": {"default": 1}, "b": {"default": 1}, "c": {"default": 1}})
    assert specs.merge_inputs(plan, {"b": 2, "c": 2, "more": True}, {"c": 3}) == (
        {"a": 1, "b": 2, "c": 3, "more": True},
        [],
    )


@pytest.mark.parametrize(
    ("kind", "value", "good"),
    [
        ("string", "x", True),
        ("string", 1, False),
        ("integer", 1, True),
        ("integer", 1.0, True),
        ("integer", 1.5, False),
        ("integer", True, False),
        ("number", 1.5, True),
        ("number", 1, True),
        ("boolean", True, True),
        ("boolean", 1, False),
        ("object", {}, True),
        ("array", [], True),
        ("array", {}, False),
        ("string", None, False),
    ],
)
def test_input_types(kind, value, good):
    _, errors = specs.merge_inputs(plan_with({"x": {"type": kind}}), {"x": value})
    assert (errors == []) == good


def test_a_missing_required_input_is_named():
    _, errors = specs.merge_inputs(plan_with({"x": {"required": True}}), None, {})
    assert errors == ["inputs.x: required, and the automation has no default for it"]


def test_what_waits_and_what_cleans_up_becomes_part_of_the_plan():
    child = {"automation_handle": "b", "condition": ".context.w.ok && .inputs.n > 1"}
    plan, errors = specs.read(
        {
            "steps": [
                sleep(duration="90s"),
                {**wait(condition=".event.ok", match={"order.id": "{{ .inputs.n }}"}), "timeout": {"duration": "1h"}},
                {"key": "c", "kind": "automation", "config": child},
            ],
            "cleanup": [action("tidy", input={"a": "{{ .context.w }}"})],
            "concurrency": "replace",
            "defaults": {"wall_clock_timeout": "2h"},
        }
    )
    assert errors == []
    assert [plan.at(seq).key for seq in (1, 2, 3, 4)] == ["s", "w", "c", "tidy"]
    assert (plan.steps[0].duration, plan.steps[1].timeout) == ("90s", 3600.0)
    assert plan.steps[2].condition.text == child["condition"]
    assert (plan.concurrency, plan.wall_clock_timeout) == ("replace", 7200.0)


def test_a_spec_that_is_not_valid_here_keeps_its_concurrency():
    assert specs.unreadable({"steps": 5, "concurrency": "skip"}).concurrency == "skip"
    assert specs.unreadable({"concurrency": ["x"]}).concurrency == "allow"


def test_inputs_that_a_spec_does_not_declare_are_refused_where_it_declares_any():
    plan, _ = specs.read({"steps": [action()], "inputs": {"x": {}}})
    assert specs.merge_inputs(plan, {"default": 1}, {"x": 1, "y": 2})[1] == [
        "inputs.y: the automation declares no such input; it declares x"
    ]
    assert specs.merge_inputs(plan, {"default": 1}, {"x": 1}) == ({"default": 1, "x": 1}, [])
    plan, _ = specs.read({"steps": [action()]})
    assert specs.merge_inputs(plan, None, {"y": 2}) == ({"y": 2}, [])


def test_faults_are_shortened_and_counted():
    name = "n" * 100_000
    errors = errors_of({"steps": [action(config={"action_name": "a", "parameters": {name: "{{x}}" * 10_000}})]})
    assert len(errors) == specs.MOST_FAULTS + 1
    assert errors[-1] == "and 9900 more faults"
    assert all(len(error) < 800 for error in errors)
    assert len(errors_of(dict.fromkeys(map(str, range(1000)), 1))) == specs.MOST_FAULTS + 1
    plan, _ = specs.read({"steps": [action()], "inputs": {"x": {}}})
    _, errors = specs.merge_inputs(plan, {f"{name}{number}": 1 for number in range(200)})
    assert len(errors) == specs.MOST_FAULTS + 1
    assert all(len(error) < 800 for error in errors)
