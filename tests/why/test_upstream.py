"""What an upstream tells of a file that the bridge knows nothing of."""

from __future__ import annotations

from bridge.core.ports import Spooled
from bridge.sandbox.dcache import SandboxDcache
from bridge.sandbox.servers import free_port
from bridge.sources import Whereabouts
from bridge.sources.dcache.occurrence import Occurrence, digest_of
from bridge.store import Store
from bridge.telemetry.metrics import Metrics
from bridge.why import Fate
from tests.servers.tansu import Tansu
from tests.why.place import Place, arrivals, version_of_file


async def test_a_file_of_dcache_is_told_by_its_name_or_path(site: SandboxDcache, place: Place) -> None:
    await site.upload("/data/in/leaf-1.nc", b"x")
    for name in ("leaf-1.nc", "/data/in/leaf-1.nc"):
        (told,) = await place.read(name, **arrivals(site))
        assert told.startswith("still upstream: arrivals: /data/in/leaf-1.nc, written 20"), name
        assert told.endswith(", has not entered: the stream or a listing will bring it")
    entry = await version_of_file(site, "/data/in/leaf-1.nc")
    async with Store.open(place.state_dir, Metrics()) as store:
        await store.spool("arrivals").mark([digest_of(entry)], 1)
    (told,) = await place.read("leaf-1.nc", **arrivals(site))
    assert told.startswith("older than the journal: arrivals: /data/in/leaf-1.nc, written 20")
    assert told.endswith(", has entered, or was there before the first start and is left out")
    assert await place.read(entry, **arrivals(site)) == [
        "older than the journal: arrivals: this version of a file has entered"
    ]


async def test_a_file_that_dcache_has_not_is_told_to_be_missing(site: SandboxDcache, place: Place) -> None:
    await site.upload("/data/in/notes.txt", b"x")
    never = "never seen, as far as is known: nothing of that name is kept, and there is no journal"
    asked = arrivals(site, include=["*.nc"])
    assert await place.read("leaf-1.nc", **asked) == [
        never,
        "  arrivals: dCache has no /data/in/leaf-1.nc; one that is deeper is found by its whole path",
    ]
    assert await place.read("/data/in/leaf-1.nc", **asked) == [
        never,
        "  arrivals: dCache has no /data/in/leaf-1.nc",
    ]
    assert await place.read("/etc/passwd", **asked) == [never, "  arrivals: it does not watch /etc/passwd"]
    assert await place.read("../../etc/passwd", **asked) == [
        never,
        "  arrivals: it does not watch ../../etc/passwd",
    ]
    for odd in ("/data/in/../../etc/passwd", "\udcff.nc", "/data/in/\udcff.nc"):
        assert await place.read(odd, **asked) == [never, f"  arrivals: it does not watch {odd}"]
    assert await place.read("notes.txt", **asked) == [
        never,
        "  arrivals: /data/in/notes.txt is there, and `include`, `exclude` or `depth` leave it out",
    ]


async def test_what_dcache_told_and_nobody_looked_up_yet_is_found(site: SandboxDcache, place: Place) -> None:
    told = Occurrence(directory="/data/in", name="leaf-1.nc", mask=["IN_CLOSE_WRITE"]).spooled("c/1")
    other = Occurrence(directory="/data/in", name="leaf-1.nc.tmp", mask=["IN_CLOSE_WRITE"]).spooled("c/2")
    broken = Spooled(key="c/3", data=b"leaf-1.nc")
    async with Store.open(place.state_dir, Metrics()) as store:
        await store.spool("arrivals").append([told, other, broken])
    for name in ("leaf-1.nc", "/data/in/leaf-1.nc", "/data/in/*1.nc"):
        (story,) = (await place.ask(name, **arrivals(site))).events
        assert (story.id, story.subject) == ("c/1", "/data/in/leaf-1.nc")
        assert [told.fate for told in story.fates] == [Fate.UNREAD]


async def test_kafka_tells_what_it_has_not_or_no_more(tansu: Tansu, place: Place, unique: str) -> None:
    await tansu.create_topic(unique)
    await tansu.produce(unique, [(b"other.nc", b"1")])
    uploads = {"uploads": place.kafka(tansu.bootstrap_servers, unique)}

    async def told(name: str) -> tuple[Whereabouts, str]:
        (still,) = (await place.ask(name, sources=uploads)).upstream
        return still.whereabouts, still.detail

    group = f"the group {unique}"
    assert await told("leaf-1.nc") == (
        Whereabouts.ABSENT,
        f"none of the 1 records that {group} has still to read is of it",
    )
    assert await told("another/0/1") == (Whereabouts.ABSENT, "it does not read the topic another")
    assert await told(f"{unique}/7/1") == (Whereabouts.ABSENT, f"Kafka has no {unique}/7")
    assert await told(f"{unique}/0/9") == (
        Whereabouts.ABSENT,
        f"{unique}/0 has no record 9 yet: the next one is 1",
    )
    uploads = {"uploads": place.kafka(f"127.0.0.1:{free_port()}", unique)}
    whereabouts, detail = await told(f"{unique}/0/0")
    assert whereabouts is Whereabouts.UNKNOWN
    assert detail.startswith("Kafka can't be asked: ")
