"""Automations, versions, runs, steps and sessions on real stores."""

import json

import msgspec
import pytest

from control_plane.domain import runs
from control_plane.domain.enqueue import NewJob
from control_plane.domain.field_sizes import MAX_FIELD_BYTES
from control_plane.domain.model import Selector
from control_plane.domain.runs import MAX_DEPTH, MAX_RUNS_AT_ONCE
from control_plane.domain.store import RunChanged
from control_plane.errors import Conflict, Invalid, NotFound
from control_plane.store import pages
from tests.support.store_scenario import action, at, plain, scenario


@pytest.fixture
async def s(place):
    async with scenario(place) as made:
        yield made


def child(key, handle, **config):
    return {"key": key, "kind": "automation", "config": {"automation_handle": handle, **config}}


def with_parameters(key, parameters, **fields):
    return {"key": key, "kind": "action", "config": {"action_name": "print", "parameters": parameters}, **fields}


# --- runs and steps


async def test_steps_run_in_order_and_see_what_came_before(s):
    steps = [
        with_parameters("fetch", {"url": "{{ .inputs.url }}", "width": "{{ .inputs.width }}"}, save_as="page"),
        with_parameters("show", {"text": "page: {{ .context.page.body.title }}"}, name="Show it"),
    ]
    await s.publish("a", steps, inputs={"url": {"required": True}, "width": {"default": 640}})
    run = await s.start("a", inputs={"url": "http://x"}, source={"type": "manual"})
    assert (run.status, run.inputs) == ("suspended", {"url": "http://x", "width": 640})
    assert [step.status for step in await s.steps(run)] == ["suspended"]

    first = await s.claim_one()
    assert json.loads(first.spec) == {"parameters": {"url": "http://x", "width": 640}}
    await s.report(first, result={"body": {"title": "Hi"}})
    assert (await s.steps(run))[0].result == {"body": {"title": "Hi"}}
    assert (await s.run(run)).result is None

    second = await s.claim_one()
    assert json.loads(second.spec) == {"parameters": {"text": "page: Hi"}}
    await s.report(second)
    run = await s.run(run)
    assert (run.status, run.result) == ("completed", {"page": {"body": {"title": "Hi"}}, "show": {}})
    shown = [(step.seq, step.step_key, step.step_name, step.status) for step in await s.steps(run)]
    assert shown == [(1, "fetch", None, "completed"), (2, "show", "Show it", "completed")]


async def test_events_are_gapless_and_tell_the_story(s):
    await s.publish("a", [action("one"), action("two")])
    run = await s.start("a")
    await s.report(await s.claim_one())
    await s.report(await s.claim_one(), "failed", error="Boom", message="it broke")
    events = await s.events(run)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    failed = next(event for event in events if event.event_type == "action.failed")
    assert failed.step_key == "two"
    assert failed.payload["error"] == {"type": "Boom", "message": "it broke"}
    assert (failed.payload["attempt"], failed.payload["worker_instance_id"], failed.payload["action_name"]) == (
        1,
        "w-1",
        "print",
    )
    assert events[-1].payload == {
        "status": "failed",
        "error": {"type": "Boom", "message": "it broke", "step_key": "two"},
    }
    assert all("status" not in event.payload for event in events if not event.event_type.startswith("run."))
    assert [event.sequence for event in await s.store.events(s.project.id, run.id, since=3, limit=2)] == [4, 5]


async def test_a_page_of_events_is_bounded_in_bytes_but_never_empty(s, monkeypatch):
    await s.publish("a", [action()])
    run = await s.start("a")
    monkeypatch.setattr(pages, "MOST_PAGE_BYTES", 10)
    seen = []
    while page := await s.store.events(s.project.id, run.id, since=len(seen), limit=100):
        seen += page
        assert len(page) == 1
    assert [event.sequence for event in seen] == [1, 2, 3]


async def test_a_commit_says_up_to_which_event_a_run_has_come(s):
    await s.publish("a", [action()])
    s.facts.clear()
    run = await s.start("a")
    assert [(fact.run_id, fact.last_sequence) for fact in s.announced(RunChanged)] == [(run.id, 3)]
    await s.claim_one()
    assert [fact.last_sequence for fact in s.announced(RunChanged)] == [4]


async def test_the_steps_behind_a_failed_one_are_not_created(s):
    await s.publish("a", [action("one"), action("two")])
    run = await s.start("a")
    await s.report(await s.claim_one(), "failed", error="Boom")
    assert [step.step_key for step in await s.steps(run)] == ["one"]


async def test_a_template_that_leads_nowhere_fails_the_step_not_the_server(s):
    await s.publish("a", [with_parameters("one", {"x": "{{ .inputs.x.y }}"})])
    run = await s.start("a", inputs={"x": {}})
    assert (run.status, run.error_type) == ("failed", "TemplateError")
    assert run.error_message == ".inputs.x.y: .inputs.x has no 'y'"
    assert (await s.event_types(run))[-2:] == ["step.failed", "run.failed"]


async def test_parameters_that_no_frame_could_carry_fail_the_step(s):
    await s.publish("a", [with_parameters("one", {"x": "{{ .inputs.x }}"})])
    run = await s.start("a", inputs={"x": "y" * (768 * 1024)})
    assert run.error_type == "SpecTooLarge"
    assert (await s.start("a", inputs={"x": "y" * (767 * 1024)})).status == "suspended"


async def test_a_large_result_is_kept_but_left_out_of_its_event(s):
    await s.publish("a", [action()])
    run = await s.start("a")
    await s.report(await s.claim_one(), result={"x": "y" * 100_000})
    event = next(event for event in await s.events(run) if event.event_type == "action.result")
    assert "result" not in event.payload
    assert event.payload["result_omitted_bytes"] > 100_000
    assert len((await s.run(run)).result["one"]["x"]) == 100_000


async def test_a_result_may_come_as_json_text(s):
    named = with_parameters("two", {"n": "{{ .context.one.a.n }}"})
    await s.publish("a", [action("one"), named])
    run = await s.start("a")
    assert await s.report(await s.claim_one(), result=msgspec.Raw(b'{"a":{"n":5}}')) == "accepted"
    second = await s.claim_one()
    assert json.loads(second.spec) == {"parameters": {"n": 5}}
    await s.report(second, result=msgspec.Raw(b'{"done":true}'))
    run = await s.run(run)
    assert (run.status, run.result) == ("completed", {"one": {"a": {"n": 5}}, "two": {"done": True}})
    told = [event.payload["result"] for event in await s.events(run) if event.event_type == "action.result"]
    assert told == [{"a": {"n": 5}}, {"done": True}]
    await s.enqueue([NewJob(action_name="print", spec={"parameters": {}})])
    lease = await s.claim_one()
    await s.report(lease, result=msgspec.Raw(b'{"n":6}'))
    assert (await s.job(lease)).result == {"n": 6}


@pytest.fixture
def little_room(monkeypatch):
    monkeypatch.setattr(runs, "MAX_KEPT_BYTES", 100_000)


@pytest.mark.usefixtures("little_room")
async def test_a_run_whose_steps_keep_too_much_fails_where_it_is_too_much(s):
    await s.publish("a", [action("one"), action("two"), action("three")])
    run = await s.start("a")
    for _ in range(2):
        await s.report(await s.claim_one(), result={"x": "y" * 40_000})
    last = await s.claim_one()
    assert await s.report(last, result={"x": "y" * 40_000}) == "accepted"
    run = await s.run(run)
    assert (run.status, run.error_type) == ("failed", "RunTooLarge")
    assert "40008 bytes the run's steps would keep more than 100000" in run.error_message
    assert [step.status for step in await s.steps(run)] == ["completed", "completed", "failed"]
    job = await s.job(last)
    assert (job.status, len(job.result["x"])) == ("completed", 40_000)
    assert (await s.event_types(run))[-3:] == ["action.result", "step.failed", "run.failed"]


@pytest.mark.usefixtures("little_room")
async def test_what_steps_are_given_counts_as_well(s):
    given = [with_parameters(key, {"x": "{{ .inputs.x }}"}) for key in ("one", "two", "three")]
    await s.publish("a", given)
    run = await s.start("a", inputs={"x": "y" * 40_000})
    for _ in range(2):
        await s.report(await s.claim_one())
    run = await s.run(run)
    assert (run.status, run.error_type) == ("failed", "RunTooLarge")
    await s.publish("child", [action()], inputs={"x": {}})
    await s.publish("parent", [child(f"c{number}", "child", inputs={"x": "{{ .inputs.x }}"}) for number in range(3)])
    run = await s.run(await s.start("parent", inputs={"x": "y" * 40_000}))
    assert (run.status, run.error_type) == ("failed", "RunTooLarge")
    assert [step.status for step in await s.steps(run)] == ["completed", "completed", "failed"]


@pytest.mark.usefixtures("little_room")
async def test_small_results_are_never_too_many(s):
    await s.publish("a", [action(f"s{number}") for number in range(20)])
    run = await s.start("a")
    for _ in range(20):
        await s.report(await s.claim_one(), result={"x": "y" * 10_000})
    assert (await s.run(run)).status == "completed"


@pytest.mark.parametrize(
    ("settings", "queue"), [(None, "default"), ({"queue": "gpu"}, "gpu"), ({"colour": "red"}, "default")]
)
async def test_an_automations_settings_name_its_queue(s, settings, queue):
    await s.publish("a", [action()], settings=settings)
    await s.start("a")
    assert (await s.claim_one()).job.queue == queue


# --- child runs


async def test_a_step_starts_an_independent_child_run_and_goes_on(s):
    await s.publish("child", [with_parameters("c", {"n": "{{ .inputs.n }}"})], inputs={"n": {"type": "integer"}})
    await s.publish("parent", [child("fan", "child", inputs={"n": "{{ .inputs.n }}"}), action("after")])
    run = await s.start("parent", inputs={"n": 7})
    fan, after = await s.steps(run)
    assert (fan.kind, fan.status, after.status) == ("action", "completed", "suspended")
    started = plain(await s.store.run(s.project.id, fan.result["run_id"]), "inputs")
    assert (started.inputs, started.status) == ({"n": 7}, "suspended")
    assert (started.parent_run_id, started.parent_step_key, started.depth) == (run.id, "fan", 1)
    await s.store.cancel_run(s.project.id, run.id, None)
    assert (await s.run(started)).status == "suspended"


async def test_a_child_that_cannot_start_fails_its_step(s):
    await s.publish("parent", [child("fan", "nobody")])
    run = await s.start("parent")
    assert run.error_type == "AutomationNotStarted"
    assert run.error_message == "nobody: no automation nobody in this project"
    assert [
        item.id
        for item in (await s.store.runs(s.project.id, status=None, automation_id=None, cursor=None, limit=9)).items
    ] == [run.id]


async def test_recursion_ends(s):
    await s.publish("self", [child("again", "self")])
    run = await s.start("self")
    assert run.status == "completed"
    runs = (await s.store.runs(s.project.id, status=None, automation_id=None, cursor=None, limit=99)).items
    assert sorted(each.depth for each in runs) == list(range(MAX_DEPTH + 1))
    assert [each.error_type for each in runs if each.depth == MAX_DEPTH] == ["AutomationNotStarted"]


async def test_an_explosion_of_runs_ends(s):
    await s.publish("bomb", [child(f"s{index}", "bomb") for index in range(10)])
    await s.start("bomb")
    runs = (await s.store.runs(s.project.id, status=None, automation_id=None, cursor=None, limit=999)).items
    assert len(runs) == MAX_RUNS_AT_ONCE


# --- starting


async def test_external_id_is_idempotent_while_the_run_goes_on(s):
    await s.publish("a", [action()])
    run = await s.start("a", external_id="order-1")
    assert (await s.start("a", external_id="order-1")).id == run.id
    assert (await s.start("a", external_id="order-2")).id != run.id
    await s.store.cancel_run(s.project.id, run.id, None)
    with pytest.raises(Conflict) as caught:
        await s.start("a", external_id="order-1")
    assert caught.value.code == "external_id_conflict"
    assert caught.value.details == {"run_id": run.id, "status": "cancelled"}


async def test_what_cannot_be_started(s):
    with pytest.raises(NotFound):
        await s.start("nobody")
    await s.store.create_automation(s.project.id, "draft", "Draft", {})
    with pytest.raises(Conflict, match="no published version") as caught:
        await s.start("draft")
    assert caught.value.code == "not_published"
    await s.publish("a", [action()], inputs={"x": {"required": True, "type": "string"}})
    with pytest.raises(Invalid, match=r"inputs.x: required") as invalid:
        await s.start("a")
    assert invalid.value.code == "invalid_inputs"
    await s.store.update_automation(s.project.id, "a", {"status": "paused"})
    with pytest.raises(Conflict) as caught:
        await s.start("a", inputs={"x": "y"})
    assert caught.value.code == "automation_paused"
    await s.store.archive_automation(s.project.id, "a")
    with pytest.raises(Conflict) as caught:
        await s.start("a", inputs={"x": "y"})
    assert caught.value.code == "automation_archived"


async def test_default_inputs_stand_between_the_specs_and_the_callers(s):
    await s.publish("a", [action()], inputs={"x": {"default": 1}, "y": {"default": 1}}, default_inputs={"x": 2, "y": 2})
    assert (await s.start("a", inputs={"y": 3})).inputs == {"x": 2, "y": 3}


# --- automations and versions


async def test_a_page_of_large_versions_is_short(s, monkeypatch):
    monkeypatch.setattr(pages, "MOST_PAGE_BYTES", 150_000)
    await s.store.create_automation(s.project.id, "a", "A", {})
    for _ in range(3):
        await s.store.create_version(s.project.id, "a", {"steps": [with_parameters("one", {"x": "y" * 60_000})]}, None)
    first = await s.store.versions(s.project.id, "a", cursor=None, limit=3)
    assert [each.version for each in first.items] == [3, 2]
    rest = await s.store.versions(s.project.id, "a", cursor=first.next_cursor, limit=3)
    assert ([each.version for each in rest.items], rest.next_cursor) == ([1], None)
    monkeypatch.setattr(pages, "MOST_PAGE_BYTES", 10)
    assert len((await s.store.versions(s.project.id, "a", cursor=None, limit=3)).items) == 1


async def test_pages_of_large_automations_and_actions_are_short(s, monkeypatch):
    half, large = {"x": "y" * 30_000}, {"x": "y" * 60_000}
    fields = [{"settings": large}, {"settings": half, "default_inputs": half}, {"default_inputs": large}, {}]
    schemas = [{"input_schema": large}, {"input_schema": half, "output_schema": half}, {"output_schema": large}, {}]
    for index in range(4):
        await s.store.create_automation(s.project.id, f"a{index}", "A", fields[index])
        await s.store.create_action(s.project.id, f"a{index}", schemas[index])

    async def listed(most):
        monkeypatch.setattr(pages, "MOST_PAGE_BYTES", most)
        automations = await s.store.automations(s.project.id, status=None, cursor=None, limit=4)
        rest = await s.store.automations(s.project.id, status=None, cursor=automations.next_cursor, limit=4)
        recorded = await s.store.actions(s.project.id, cursor=None, limit=4)
        more = await s.store.actions(s.project.id, cursor=recorded.next_cursor, limit=4)
        assert [each.handle for each in automations.items] == [each.name for each in recorded.items]
        assert [each.handle for each in rest.items] == [each.name for each in more.items]
        return [each.handle for each in automations.items], [each.handle for each in rest.items]

    assert await listed(150_000) == (["a3", "a2", "a1"], ["a0"])
    assert await listed(100_000) == (["a3", "a2"], ["a1"])


async def test_what_is_read_to_be_answered_stays_text(s):
    """Decoded, what a client wrote may be a hundred times as large, and the event loop stands still meanwhile."""
    inputs, source = {"x": [[]]}, {"type": "api"}
    await s.publish("a", [action()], settings={"queue": "q"}, default_inputs={"y": [[]]})
    await s.store.create_action(s.project.id, "resize", {"input_schema": {"x": [[]]}, "output_schema": {"y": [[]]}})
    run = await s.start("a", inputs=inputs, source=source)
    automation = await s.store.automation(s.project.id, "a")
    read = [
        (automation, "settings", "default_inputs"),
        *((one, "settings", "default_inputs") for one in await listed(s.store.automations, s, status=None)),
        (await s.store.action(s.project.id, "resize"), "input_schema", "output_schema"),
        *((one, "input_schema", "output_schema") for one in await listed(s.store.actions, s)),
        (await s.store.run(s.project.id, run.id), "inputs", "source"),
        *((one, "inputs", "source") for one in await listed(s.store.runs, s, status=None, automation_id=None)),
        *((one, "payload") for one in await s.store.events(s.project.id, run.id, since=0, limit=9)),
    ]
    (version,) = (await s.store.versions(s.project.id, "a", cursor=None, limit=9)).items
    read.append((version, "spec"))
    assert version.validation == {"valid": True, "errors": []}
    assert len(read) > 9
    for record, *names in read:
        assert [type(getattr(record, name)) for name in names] == [msgspec.Raw] * len(names), type(record)
    shown = plain(await s.store.run(s.project.id, run.id), "inputs", "source")
    assert (shown.inputs, shown.source) == ({"y": [[]]} | inputs, source)


async def listed(listing, s, **which):
    return (await listing(s.project.id, cursor=None, limit=9, **which)).items


async def test_what_describes_something_is_bounded(s):
    large = {"x": "y" * MAX_FIELD_BYTES}
    too_large = f"expected at most {MAX_FIELD_BYTES} bytes of JSON, got {MAX_FIELD_BYTES + 8}"
    for name in ("settings", "default_inputs", "tags"):
        with pytest.raises(Invalid, match=f"{name}: {too_large}"):
            await s.store.create_automation(s.project.id, "a", "A", {name: large})
    await s.store.create_automation(s.project.id, "a", "A", {})
    with pytest.raises(Invalid, match=f"settings: {too_large}"):
        await s.store.update_automation(s.project.id, "a", {"settings": large})
    with pytest.raises(Invalid, match=f"input_schema: {too_large}"):
        await s.store.create_action(s.project.id, "resize", {"input_schema": large})
    half = "y" * (MAX_FIELD_BYTES // 2)
    await s.store.create_action(s.project.id, "resize", {"annotations": {"a": half}})
    with pytest.raises(Invalid, match="annotations: expected at most"):
        await s.store.update_action(s.project.id, "resize", {"annotations": {"b": half}})


async def test_versions_are_numbered_validated_and_published(s):
    await s.store.create_automation(s.project.id, "a", "A", {"tags": {"team": "x"}, "settings": {"queue": "q"}})
    bad = await s.store.create_version(s.project.id, "a", {"steps": []}, None)
    assert bad.validation == {"valid": False, "errors": ["steps: required; a list of at least one step"]}
    with pytest.raises(Conflict, match="version 1: steps: required") as caught:
        await s.store.publish_version(s.project.id, "a", 1)
    assert caught.value.code == "invalid_version"
    for _ in range(2):
        await s.store.create_version(s.project.id, "a", {"steps": [action()]}, None)
    await s.store.publish_version(s.project.id, "a", 2)
    automation = await s.store.publish_version(s.project.id, "a", 3)
    assert (automation.status, automation.published_version, automation.latest_version) == ("active", 3, 3)
    versions = await s.store.versions(s.project.id, "a", cursor=None, limit=50)
    assert [(each.version, each.status) for each in versions.items] == [
        (3, "published"),
        (2, "superseded"),
        (1, "draft"),
    ]
    newest = await s.store.versions(s.project.id, "a", cursor=None, limit=2)
    assert [each.version for each in newest.items] == [3, 2]
    rest = await s.store.versions(s.project.id, "a", cursor=newest.next_cursor, limit=2)
    assert ([each.version for each in rest.items], rest.next_cursor) == ([1], None)
    with pytest.raises(NotFound, match="has no version 9"):
        await s.store.publish_version(s.project.id, "a", 9)
    shown = await s.store.automation(s.project.id, "a")
    assert plain(shown, "default_inputs", "settings", "tags") == automation


async def test_a_run_keeps_the_version_that_it_began_with(s):
    await s.publish("a", [action("one"), action("two")])
    run = await s.start("a")
    await s.store.create_version(s.project.id, "a", {"steps": [action("other")]}, None)
    await s.store.publish_version(s.project.id, "a", 2)
    await s.report(await s.claim_one())
    assert [step.step_key for step in await s.steps(run)] == ["one", "two"]


async def test_automations_are_changed_and_refused(s):
    await s.publish("a", [action()])
    changed = await s.store.update_automation(s.project.id, "a", {"name": "B", "description": None})
    assert (changed.name, changed.status) == ("B", "active")
    with pytest.raises(Invalid, match=r"settings.queue: expected a text"):
        await s.store.update_automation(s.project.id, "a", {"settings": {"queue": 5}})
    with pytest.raises(Conflict) as caught:
        await s.store.create_automation(s.project.id, "a", "A", {})
    assert caught.value.code == "handle_taken"
    await s.store.create_automation(s.project.id, "b", "B", {})
    with pytest.raises(Conflict) as caught:
        await s.store.update_automation(s.project.id, "b", {"status": "active"})
    assert caught.value.code == "not_published"


async def test_listings_are_paged_newest_first(s):
    for index in range(5):
        await s.publish(f"a{index}", [action()])
    seen, cursor = [], None
    while True:
        page = await s.store.automations(s.project.id, status=None, cursor=cursor, limit=2)
        seen += [item.handle for item in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == ["a4", "a3", "a2", "a1", "a0"]
    await s.store.archive_automation(s.project.id, "a3")
    listed = await s.store.automations(s.project.id, status=None, cursor=None, limit=9)
    assert "a3" not in [item.handle for item in listed.items]
    archived = await s.store.automations(s.project.id, status="archived", cursor=None, limit=9)
    assert [item.handle for item in archived.items] == ["a3"]
    for cursor in ("rubbish!", "\u00e9", ""):
        with pytest.raises(Invalid) as caught:
            await s.store.automations(s.project.id, status=None, cursor=cursor, limit=2)
        assert caught.value.code == "invalid_cursor"


async def test_runs_are_found_by_status_and_automation(s):
    one = await s.publish("one", [action()])
    two = await s.publish("two", [action()])
    first, second = await s.start("one"), await s.start("two")
    third = await s.start("one")
    await s.store.cancel_run(s.project.id, first.id, None)

    async def found(status=None, automation_id=None):
        page = await s.store.runs(s.project.id, status=status, automation_id=automation_id, cursor=None, limit=9)
        return [run.id for run in page.items]

    assert await found() == [third.id, second.id, first.id]
    assert await found(status="suspended") == [third.id, second.id]
    assert await found(automation_id=one.id) == [third.id, first.id]
    assert await found(status="cancelled", automation_id=one.id) == [first.id]
    assert await found(status="cancelled", automation_id=two.id) == []
    other = await s.store.create_project("other", "Other")
    assert (await s.store.runs(other.id, status=None, automation_id=None, cursor=None, limit=9)).items == []
    with pytest.raises(NotFound):
        await s.store.run(other.id, first.id)


# --- projects, keys and sessions


async def test_keys_belong_to_projects(s):
    assert not await s.store.has_keys()
    key = await s.store.create_key("default", "laptop", b"h" * 32)
    assert await s.store.has_keys()
    assert await s.store.key(b"h" * 32) == key
    assert await s.store.key(b"x" * 32) is None
    with pytest.raises(NotFound):
        await s.store.create_key("nobody", "laptop", b"i" * 32)
    with pytest.raises(Conflict):
        await s.store.create_project("default", "Again")
    assert [project.handle for project in await s.store.projects()] == ["default"]


async def test_a_new_process_supersedes_the_old_ones_rows_but_not_a_draining_one(s):
    draining = await s.register("w-2")
    await s.store.update_session(draining.id, draining=True)
    second = await s.register("w-2")
    third = await s.register("w-2")
    by_token = [await s.store.session_by_token(s.project.id, each.token_hash) for each in (draining, second, third)]
    assert [each.superseded for each in by_token] == [False, True, False]
    assert (await s.store.session_of_instance(s.project.id, "w-2")).id == third.id
    with pytest.raises(Conflict) as caught:
        await s.store.register_session(second)
    assert caught.value.code == "session_superseded"


async def test_a_draining_session_that_comes_back_takes_nothing_from_its_successor(s):
    old = await s.register("w", draining=True)
    new = await s.register("w")
    await s.store.register_session(old, now=at(1))
    assert not (await s.store.session_by_token(s.project.id, new.token_hash)).superseded
    assert new.id in [view.session.id for view in await s.store.sessions(s.project.id, now=at(2))]


async def test_a_session_is_renewed_and_keeps_its_jobs(s):
    await s.publish("a", [action("named", name="The step")])
    await s.start("a")
    lease = await s.claim_one()
    renewed = await s.store.register_session(s.session, now=at(50))
    assert (renewed.id, renewed.created_at, renewed.last_seen_at) == (s.session.id, at(0), at(50))
    (view,) = await s.store.sessions(s.project.id)
    assert [job.id for job in view.current_jobs] == [lease.job.id]
    assert view.step_names == {lease.job.id: "The step"}
    await s.report(lease)
    (view,) = await s.store.sessions(s.project.id)
    assert (view.current_jobs, view.last_job.id) == ([], lease.job.id)


async def test_a_session_was_last_seen_at_its_end_at_the_latest(s):
    """Who has been seen is written now and then: also behind the end of one that has left."""
    other = await s.register("w-2")
    await s.store.update_session(s.session.id, ended=True, now=at(20))
    await s.store.sessions_seen({s.session.id: at(25), other.id: at(25)})
    seen = await s.read("SELECT worker_instance_id, last_seen_at, ended_at FROM sessions ORDER BY worker_instance_id")
    assert seen == [("w-1", at(20), at(20)), ("w-2", at(25), None)]


async def test_sessions_end_when_they_are_not_seen(s):
    other = await s.register("w-2", selector=Selector(queues=("gpu",)), capabilities=("x",))
    await s.store.sessions_seen({other.id: at(100)})
    assert await s.store.end_sessions(unseen_since=at(50), except_for=[], now=at(200)) == 1
    assert [view.session.worker_instance_id for view in await s.store.sessions(s.project.id)] == ["w-2"]
    assert await s.store.end_sessions(unseen_since=at(150), except_for=[other.id], now=at(200)) == 0
