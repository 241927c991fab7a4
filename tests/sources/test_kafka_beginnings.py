"""`latest` is for what exists when the group begins, and for nothing that appears later."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiokafka import OffsetAndMetadata, TopicPartition

from bridge.sources.kafka import aiokafka_private
from bridge.sources.kafka.beginnings import Beginnings
from bridge.sources.kafka.config import KafkaConfig
from bridge.testing import opened, settle, until
from tests.servers.tansu import Tansu
from tests.sources.reading import source


@pytest.mark.parametrize("is_up", [True, False])
async def test_a_topic_that_appears_later_loses_no_record(tansu: Tansu, unique: str, is_up: bool) -> None:
    """While the bridge runs, and while it is down."""
    await tansu.create_topic(f"{unique}-old")
    await tansu.prepare_group(unique, f"{unique}-old")
    await tansu.produce(f"{unique}-old", [b"before"])
    latest = source(
        tansu, unique, topic_pattern=f"{unique}-.*", auto_offset_reset="latest", metadata_max_age=0.3
    )

    async def begun() -> bool:
        return await tansu.committed(unique, f"{unique}-old") == {0: 1}

    async def appear() -> None:
        await tansu.create_topic(f"{unique}-new")
        await tansu.produce(f"{unique}-new", [b"first", b"second"])

    async with opened(latest) as hands:
        await until(begun)
        if is_up:
            await appear()
            settle(await hands.take(2))
            assert hands.data == [b"first", b"second"]
            return
    await appear()
    again = source(tansu, unique, topic_pattern=f"{unique}-.*", auto_offset_reset="latest")
    async with opened(again) as hands:
        settle(await hands.take(2))
        assert hands.data == [b"first", b"second"]


@dataclass
class Group:
    """A group's commits, and what there is; played in place of a broker."""

    there: set[TopicPartition]
    generation: int = 1
    commits: dict[TopicPartition, OffsetAndMetadata] = field(default_factory=dict)

    def partitions_for_topic(self, topic: str) -> set[int]:
        return {place.partition for place in self.there if place.topic == topic}

    async def end_offsets(self, places: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(places, 100)


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Group:
    async def committed(group: Any, places: Collection[TopicPartition]) -> Any:
        return {place: at for place, at in group.commits.items() if place in places}

    monkeypatch.setattr(aiokafka_private, "committed", committed)
    monkeypatch.setattr(aiokafka_private, "generation", lambda group: group.generation)
    return Group({TopicPartition("t", number) for number in range(4)})


class Member:
    """One member of the group, from its first assignment on."""

    def __init__(self, group: Group, **more: Any) -> None:
        config = {"bootstrap_servers": "k:1", "topics": ["t", "u"], "group_id": "g", **more}
        self.group = group
        self.beginnings = Beginnings(
            KafkaConfig.model_validate({"type": "kafka", "auto_offset_reset": "latest", **config})
        )

    async def begins(self, *places: TopicPartition) -> list[int]:
        group = self.group
        await self.beginnings.learn(group, ["t", "u"], places)  # type: ignore[arg-type] # a stand-in
        starts = await self.beginnings.of(group, places, dict.fromkeys(places, 0))  # type: ignore[arg-type]
        mark = self.beginnings.mark(group)  # type: ignore[arg-type]
        group.commits |= {place: OffsetAndMetadata(start, mark) for place, start in starts.items()}
        return list(starts.values())


T = [TopicPartition("t", number) for number in range(5)]


async def test_members_that_begin_together_know_each_others_first_commits(group: Group) -> None:
    one, two = Member(group), Member(group)
    assert await one.begins(T[0], T[1]) == [100, 100]
    assert await two.begins(T[2], T[3]) == [100, 100]


async def test_a_member_that_comes_later_begins_new_partitions_with_their_first_record(group: Group) -> None:
    assert await Member(group).begins(*T[:4]) == [100] * 4
    group.there.add(T[4])
    group.generation = 2
    assert await Member(group).begins(T[4]) == [0]


async def test_what_was_there_at_the_first_assignment_and_had_no_leader_then_begins_at_its_end(
    group: Group,
) -> None:
    member = Member(group)
    assert await member.begins(*T[:3]) == [100] * 3
    group.generation = 2
    group.there.add(T[4])
    assert await member.begins(T[3], T[4]) == [100, 0]


async def test_a_topic_that_is_not_there_when_a_group_without_commits_begins_is_new(group: Group) -> None:
    group.there.clear()
    member = Member(group)
    assert await member.begins() == []
    group.there.update(T)
    group.generation = 2
    assert await member.begins(*T) == [0] * 5


async def test_earliest_asks_for_no_commits(group: Group) -> None:
    assert await Member(group, auto_offset_reset="earliest").begins(T[0]) == [0]
