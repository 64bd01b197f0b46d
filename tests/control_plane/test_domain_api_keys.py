"""What keys open, and how they end: plain data in, plain data out."""

from itertools import combinations

import pytest

from control_plane.domain import api_keys
from control_plane.domain.api_keys import SCOPES, Grant, created, ends_at, opens, revoked, rotated
from control_plane.domain.model import ApiKey, Project
from control_plane.errors import Conflict, Invalid

PROJECT = Project(id="proj_1", handle="default", name="Default", created_at=0, updated_at=0)


def key(**fields):
    grant = Grant(name="ci", **{"scopes": ("worker",), **fields})
    return created(grant, PROJECT, "key_1", 100)


def test_every_set_of_scopes_against_every_scope():
    sets = [set(some) for number in range(1, 4) for some in combinations(SCOPES, number)]
    assert len(sets) == 7
    for some in sets:
        made = key(scopes=tuple(some))
        allowed = {scope for scope in SCOPES if opens(made, scope)}
        assert allowed == some | ({"reader"} if "operator" in some else set())


def test_a_key_is_made_as_it_is_granted():
    made = key(scopes=("worker", "operator", "worker"), expires_at=200)
    assert made == ApiKey(
        id="key_1",
        project_id="proj_1",
        project_handle="default",
        name="ci",
        created_at=100,
        scopes=("operator", "worker"),
        expires_at=200,
    )


@pytest.mark.parametrize("fields", [{"scopes": ()}, {"expires_at": 100}, {"expires_at": 1}])
def test_a_key_that_would_open_nothing_is_refused(fields):
    with pytest.raises(Invalid):
        key(**fields)


@pytest.mark.parametrize(
    ("expires_at", "revoked_at", "end"), [(None, None, None), (5, None, 5), (None, 7, 7), (5, 7, 5), (9, 7, 7)]
)
def test_the_earlier_end_counts(expires_at, revoked_at, end):
    made = ApiKey(
        id="k",
        project_id="p",
        project_handle="default",
        name="n",
        created_at=0,
        expires_at=expires_at,
        revoked_at=revoked_at,
    )
    assert ends_at(made) == end


def test_a_rotation_ends_the_old_key_after_the_overlap():
    rotation = rotated(key(), "key_2", 50, None, 1000)
    assert (rotation.old.expires_at, rotation.old.replaced_by) == (1050, "key_2")
    assert (rotation.new.id, rotation.new.created_at, rotation.new.expires_at) == ("key_2", 1000, None)
    assert (rotation.new.scopes, rotation.new.name, rotation.new.replaced_by) == (("worker",), "ci", None)


def test_an_overlap_never_lengthens_a_life_and_the_successor_lives_as_long():
    rotation = rotated(key(expires_at=1100), "key_2", 5000, None, 1000)
    assert rotation.old.expires_at == 1100
    assert rotation.new.expires_at == 1000 + (1100 - 100)
    assert rotated(key(expires_at=1100), "key_2", 0, 1500, 1000).new.expires_at == 1500


def test_what_has_ended_or_was_rotated_is_not_rotated():
    for ended in (revoked(key(), 500), key(expires_at=900)):
        with pytest.raises(Conflict) as refusal:
            rotated(ended, "key_2", 10, None, 1000)
        assert refusal.value.code == "key_ended"
    with pytest.raises(Conflict) as refusal:
        rotated(rotated(key(), "key_2", 500, None, 1000).old, "key_3", 10, None, 1001)
    assert (refusal.value.code, refusal.value.details) == ("key_rotated", {"replaced_by": "key_2"})
    with pytest.raises(Invalid):
        rotated(key(), "key_2", 10, 1000, 1000)


def test_a_revocation_counts_once():
    once = revoked(key(), 500)
    assert once.revoked_at == 500
    assert revoked(once, 600) is once
    assert api_keys.ends_at(once) == 500
