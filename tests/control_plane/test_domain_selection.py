import pytest

from control_plane.domain.model import Selector
from control_plane.domain.selection import admits
from control_plane.domain.store import JobClaimable

MODELS = (("ollama", "llama3"),)


def work(**fields):
    return JobClaimable(**{"project_id": "p", "job_id": "j", "queue": "default", "available_at": 0, **fields})


PRINT = work(action_name="print")
LLAMA = work(provider="ollama", model="llama3")


@pytest.mark.parametrize(
    ("selector", "job", "admitted"),
    [
        (Selector(), PRINT, True),
        (Selector(), LLAMA, False),
        (Selector(queues=("default", "gpu")), PRINT, True),
        (Selector(queues=("gpu",)), PRINT, False),
        (Selector(action_names=("print",)), PRINT, True),
        (Selector(action_names=("fail",)), PRINT, False),
        (Selector(models=MODELS), PRINT, False),
        (Selector(models=MODELS), LLAMA, True),
        (Selector(models=(("ollama", "other"),)), LLAMA, False),
        (Selector(models=MODELS, action_names=("print",)), PRINT, True),
        (Selector(models=MODELS, action_names=("print",)), LLAMA, True),
        (Selector(environment_id="e"), PRINT, False),
        (Selector(), work(action_name="print", environment_id="e"), False),
        (Selector(environment_id="e"), work(action_name="print", environment_id="e"), True),
    ],
)
def test_admits(selector, job, admitted):
    assert admits(selector, job) is admitted
