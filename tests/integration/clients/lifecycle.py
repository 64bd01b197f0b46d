"""The public client 0.0.23, unchanged, from an automation's creation to the results of its runs, as JSON lines."""

import json
import os
import sys
from typing import Any

import httpx
from deepnoodle.mobius import Client, ClientOptions
from deepnoodle.mobius.client import (
    AutomationOptions,
    AutomationVersionOptions,
    ListAutomationsOptions,
    ListRunsOptions,
    StartRunOptions,
    UpdateAutomationOptions,
    WaitRunOptions,
)

SPEC = {
    "name": "Greeting",
    "inputs": {"name": {"type": "string", "required": True}},
    "steps": [
        {
            "key": "greet",
            "kind": "action",
            "config": {"action_name": "greet", "parameters": {"name": "{{ .inputs.name }}"}},
        },
        {
            "key": "retry",
            "kind": "action",
            "save_as": "retried",
            "retry": {"max_attempts": 3},
            "timeout": {"duration": "1m"},
            "config": {"action_name": "flaky", "parameters": {"succeed_at": 2}},
        },
        {
            "key": "count",
            "kind": "action",
            "config": {"action_name": "count", "parameters": {"items": ["{{ .context.greet.greeting }}", "b"]}},
        },
    ],
}
ENDLESS = {"steps": [{"key": "wait", "kind": "action", "config": {"action_name": "endless", "parameters": {}}}]}
APPROVAL = {
    "steps": [
        {"key": "nap", "kind": "sleep", "config": {"duration": "10ms"}},
        {"key": "ok", "kind": "wait_for_event", "config": {"event_type": "approved"}, "timeout": {"duration": "1h"}},
    ],
    "concurrency": "skip",
    "defaults": {"wall_clock_timeout": "1h"},
}


def say(event: str, **details: Any) -> None:
    sys.stdout.write(json.dumps({"event": event, **details}, default=str) + "\n")
    sys.stdout.flush()


def dump(model: Any) -> Any:
    return model.model_dump(mode="json", exclude_none=True)


client = Client(ClientOptions(api_key=os.environ["MOBIUS_API_KEY"], base_url=os.environ["MOBIUS_API_URL"]))

created = client.create_automation(
    AutomationOptions(name="Greeting", handle="greeting", description="says hello", tags={"team": "tests"})
)
version = client.create_automation_version("greeting", SPEC, AutomationVersionOptions(publish=True))
updated = client.update_automation("greeting", UpdateAutomationOptions(description="says hello twice"))
say(
    "published",
    created=dump(created),
    version=version.version,
    validation=version.validation,
    fetched=dump(client.get_automation("greeting")),
    updated=updated.description,
    listed=[one.handle for one in client.list_automations(ListAutomationsOptions(limit=10)).items],
    versions=[one.version for one in client.list_automation_versions("greeting").items],
)

run = client.start_run("greeting", StartRunOptions(inputs={"name": "Ada"}, external_id="order-1"))
events = [[event.event_type, event.sequence, event.payload] for event in client.watch_run(run.id)]
say("watched", run_id=run.id, events=events)
say("resumed", events=[event.sequence for event in client.watch_run(run.id, since=events[-2][1])])
say("waited", run=dump(client.wait_run(run.id, WaitRunOptions(timeout=30))))

second = client.start_run("greeting", StartRunOptions(inputs={"name": "Grace"}))
say("waited", run=dump(client.wait_run(second.id, WaitRunOptions(timeout=30, reconnect_delay=0.1))))
say("listed", runs=[one.id for one in client.list_runs(ListRunsOptions(limit=10)).items])

client.create_automation(AutomationOptions(name="Endless", handle="endless"))
client.create_automation_version("endless", ENDLESS, AutomationVersionOptions(publish=True))
stuck = client.start_run("endless")
sys.stdin.readline()  # the test says that the handler runs
cancelled = client.cancel_run(stuck.id, "no longer needed")
say("cancelled", run=dump(client.wait_run(stuck.id, WaitRunOptions(timeout=30))), answer=cancelled.status)
again = client.cancel_run(run.id)
say("cancelled again", status=again.status)

client.delete_automation("endless")

client.create_automation(AutomationOptions(name="Approval", handle="approval"))
client.create_automation_version("approval", APPROVAL, AutomationVersionOptions(publish=True))
asked = client.start_run("approval")
watched = client.watch_run(asked.id)
# The first step has had its time; what it waits for now is us.
for event in watched:
    if event.event_type == "step.suspended" and event.payload.get("event_type"):
        break
signalled = client.signal_run(asked.id, "ok", {"by": "me"})
types = [event.event_type for event in watched]
say("signalled", status=signalled.status, types=types, run=dump(client.wait_run(asked.id, WaitRunOptions(timeout=30))))
try:
    client.start_run("no-such-automation")
except httpx.HTTPStatusError as error:
    say("refused", status=error.response.status_code, body=error.response.json())
