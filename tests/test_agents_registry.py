"""The registry: immutable versions, who sees and changes what, archive and restore."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import IntegrityError, connection, transaction

from agents import services
from agents.errors import AgentArchived, AgentIsShared, AgentNotFound, InvalidCard
from agents.models import Agent, AgentEmbedding, AgentTerm, AgentVersion, find_version
from tests.agents import (
    MAIN,
    WordEmbedder,
    make_card,
    make_noop,
    meet_at,
    member,
    register_all,
    staff,
    words,
)
from tests.factories import make_project

__all__ = ["words"]
pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("words")]


def test_a_known_slug_makes_a_new_version() -> None:
    by = member()

    first = services.register(by, make_card(description="One"))
    second = services.register(by, make_card(description="Two"))

    assert (first.number, second.number, second.agent_id) == (1, 2, first.agent_id)
    assert services.get(by, "echo").current_version == second


def test_equal_content_makes_no_version() -> None:
    by = member()

    first, was_new = services.put(by, make_card())
    again, is_new = services.put(by, make_card())

    assert (first.id, was_new, is_new) == (again.id, True, False)
    assert AgentVersion.objects.count() == 1


def test_the_database_refuses_to_change_or_delete_a_version() -> None:
    version = services.register(member(), make_card())

    with pytest.raises(IntegrityError), transaction.atomic():
        AgentVersion.objects.filter(id=version.id).update(description="Other")
    with pytest.raises(IntegrityError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("DELETE FROM agents_agentversion WHERE id = %s", [version.id])


def test_only_the_current_version_is_indexed() -> None:
    by = member()
    services.register(by, make_card(description="Counts zebras"))

    newer = services.register(by, make_card(description="Counts giraffes"))

    assert set(AgentTerm.objects.values_list("agent_version", flat=True)) == {newer.id}
    assert set(AgentEmbedding.objects.values_list("agent_version", flat=True)) == {newer.id}
    assert not AgentTerm.objects.filter(term="zebra").exists()


def test_another_projects_agent_answers_as_a_missing_one() -> None:
    owner, stranger = member(), member()
    services.register(owner, make_card("secret"))

    for ask in (services.get, services.resolve, services.archive, services.restore):
        with pytest.raises(AgentNotFound) as theirs:
            ask(stranger, "secret")
        with pytest.raises(AgentNotFound) as missing:
            ask(stranger, "absent")
        assert theirs.value.detail.replace("secret", "absent") == missing.value.detail
    assert not services.agents(stranger).exists()


def test_the_same_slug_in_two_projects_is_two_agents() -> None:
    mine, theirs = member(), member()

    a = services.register(mine, make_card(description="Mine"))
    b = services.register(theirs, make_card(description="Theirs"))

    assert (a.number, b.number) == (1, 1)
    assert services.resolve(mine, "echo").description == "Mine"
    assert services.resolve(theirs, "echo").description == "Theirs"


def test_everybody_sees_shared_agents_and_no_key_changes_them() -> None:
    services.register(staff(), make_card("common"))
    by = member()

    assert services.resolve(by, "common").number == 1
    for change in (services.archive, services.restore):
        with pytest.raises(AgentIsShared):
            change(by, "common")
    with pytest.raises(AgentIsShared):
        services.patch(by, "common", {"description": "Mine now"})
    assert services.get(staff(), "common").status == "active"


def test_an_own_agent_hides_the_shared_one_of_its_slug() -> None:
    services.register(staff(), make_card("common", description="Shared"))
    by, other = member(), member()

    own = services.register(by, make_card("common", description="Own"))

    assert own.number == 1
    assert [agent.current_version for agent in services.agents(by)] == [own]
    assert services.resolve(other, "common").description == "Shared"


def test_an_archived_agent_takes_no_work_and_no_version_until_it_is_restored() -> None:
    by = member()
    version = services.register(by, make_card())

    assert services.archive(by, "echo").status == "archived"
    assert services.archive(by, "echo").archived_at is not None
    with pytest.raises(AgentArchived):
        services.resolve(by, "echo")
    with pytest.raises(AgentArchived):
        services.register(by, make_card(description="New"))
    with pytest.raises(AgentArchived):
        services.register(by, make_card())

    assert services.restore(by, "echo").status == "active"
    assert services.resolve(by, "echo") == version


def test_a_reference_names_the_current_or_an_older_version() -> None:
    by = member()
    first = services.register(by, make_card(description="One"))
    second = services.register(by, make_card(description="Two"))

    assert services.resolve(by, "echo") == services.resolve(by, "echo@2") == second
    assert services.resolve(by, "echo@1") == first


@pytest.mark.parametrize(
    "ref",
    [
        "",
        "echo@",
        "echo@0",
        "echo@3",
        "echo@-1",
        "echo@1@1",
        "echo@9999999999",
        "Echo",
        "echo@1\n",
        "é",
        "x" * 999,
    ],
)
def test_a_reference_that_names_nothing_is_not_found(ref: str) -> None:
    by = member()
    services.register(by, make_card())

    with pytest.raises(AgentNotFound):
        services.resolve(by, ref)


def test_a_patch_replaces_fields_and_keeps_the_rest() -> None:
    by = member()
    services.register(by, make_card(examples=["Do it"], tags=["fast"]))

    version, is_new = services.patch(by, "echo", {"description": "Patched"})

    assert (is_new, version.number) == (True, 2)
    assert (version.description, version.examples, version.tags) == ("Patched", ["Do it"], ["fast"])
    assert services.patch(by, "echo", {"description": "Patched"}) == (version, False)


@pytest.mark.parametrize("changes", [{"slug": "other"}, {"slug": None}, {"name": ""}, {"nonsense": 1}])
def test_a_patch_is_checked_as_a_card_and_never_moves_the_slug(changes: dict[str, object]) -> None:
    by = member()
    services.register(by, make_card())

    with pytest.raises(InvalidCard) as caught:
        services.patch(by, "echo", changes)

    assert [fault["pointer"] for fault in caught.value.errors] == [f"/{next(iter(changes))}"]


def test_two_versions_differ_by_field_and_by_line() -> None:
    by = member()
    older = services.register(
        by, make_card(description="One", source={"agent.py": MAIN, "gone.py": "a = 1\n"})
    )
    newer = services.register(by, make_card(description="Two", source={"agent.py": MAIN + "# more\n"}))

    changed = services.diff(older, newer)

    assert changed["fields_changed"] == [{"field": "description", "before": "One", "after": "Two"}]
    assert [file["file"] for file in changed["files_changed"]] == ["agent.py", "gone.py"]
    assert "+# more" in changed["files_changed"][0]["diff"]
    assert "/dev/null" in changed["files_changed"][1]["diff"]


def test_what_is_exported_can_be_imported_elsewhere() -> None:
    source, target = member(), member()
    cards = [make_card("a", examples=["Do a"]), make_noop("b", "Does b", skills=[{"name": "B"}])]
    register_all(source, cards)

    exported = services.export(source)
    register_all(target, exported)

    assert services.export(target) == exported
    assert [card["slug"] for card in exported] == ["a", "b"]


def test_two_cards_of_one_slug_in_many_are_refused_unless_they_say_the_same() -> None:
    by = member()
    with pytest.raises(InvalidCard) as refused:
        register_all(
            by, [make_card("one"), make_card("other"), make_card("one", description="Says otherwise")]
        )

    assert refused.value.errors == [{"pointer": "/2/slug", "detail": "Another card with this slug is at /0"}]
    assert not Agent.objects.filter(project=by.project).exists()
    assert [one.number for one in register_all(by, [make_card("one"), make_card("one")])] == [1, 1]


@pytest.mark.django_db(transaction=True)
def test_two_registrations_of_the_same_agents_in_other_orders_do_not_block_each_other() -> None:
    by = member()
    slugs = ["a", "b", "c"]
    register_all(by, [make_card(slug) for slug in slugs])

    def register(order: list[str], says: str) -> list[AgentVersion]:
        return register_all(by, [make_card(slug, description=says) for slug in order])

    found = meet_at(
        "SELECT 1 FROM agents_agent WHERE slug = 'b' FOR UPDATE",
        [],
        [lambda: register(slugs, "One"), lambda: register(slugs[::-1], "Other")],
    )

    assert [[one.agent.slug for one in versions] for versions in found] == [slugs, slugs[::-1]]
    assert sorted([versions[0].number for versions in found]) == [2, 3]


def test_one_bad_card_in_many_registers_none_and_is_named_by_its_index() -> None:
    by = member()

    with pytest.raises(InvalidCard) as caught:
        register_all(by, [make_card("good"), make_card("bad", source={})])

    assert [fault["pointer"] for fault in caught.value.errors] == ["/1/kind"]
    assert not services.agents(by).exists()


def test_progress_is_told_from_none_to_all() -> None:
    told: list[tuple[int, int]] = []

    services.put_many(
        member(), [make_card(f"a-{n}") for n in range(45)], lambda done, of: told.append((done, of))
    )

    assert told[0] == (0, 45)
    assert told[-1] == (45, 45)
    assert len(told) > 2


def test_without_the_model_an_agent_is_registered_by_its_words(words: WordEmbedder) -> None:
    words.is_down = True

    version = services.register(member(), make_card(description="Counts zebras"))

    assert AgentTerm.objects.filter(agent_version=version, term="zebra").exists()
    assert not AgentEmbedding.objects.exists()


def test_equal_text_is_embedded_once(words: WordEmbedder) -> None:
    by = member()
    services.register(by, make_card("one", name="Same", examples=["Count the zebras"]))
    asked = len(words.asked)

    services.register(by, make_card("two", name="Other", description="Else", examples=["Count the zebras"]))

    assert "Count the zebras" not in words.asked[asked:]


@pytest.mark.django_db(transaction=True)
def test_registrations_of_one_slug_at_once_give_numbers_without_gaps() -> None:
    project = make_project()

    def register(number: int) -> None:
        try:
            services.register(member(project), make_card(description=f"Version {number}"))
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(register, range(8)))

    agent = Agent.objects.get(slug="echo")
    assert sorted(agent.versions.values_list("number", flat=True)) == list(range(1, 9))
    assert agent.current_version is not None
    assert agent.current_version.number == 8


def test_the_short_way_to_a_version_sees_exactly_what_a_project_may_see() -> None:
    one, other = member(), member()
    register_all(
        staff(), [make_noop("shared", "Is shared"), make_noop("hidden", "Is shared, and hidden by one")]
    )
    register_all(one, [make_noop("hidden", "Is one's"), make_noop("own", "Is one's alone")])
    register_all(one, [make_noop("own", "Is one's alone, once more")])
    services.archive(one, "own")

    for by in (one, other):
        assert by.project is not None
        for slug in ("shared", "hidden", "own", "nobody"):
            agent = services.agents(by).filter(slug=slug).first()
            found = find_version(by.project.id, slug, None)
            assert found == (None if agent is None else (agent.status, agent.current_version_id))
            for number in (1, 2):
                found = find_version(by.project.id, slug, number)
                version = agent and agent.versions.filter(number=number).first()
                assert found == (None if agent is None else (agent.status, version and version.id))
