"""Claims of several processes and machines in one folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from medseg.cluster.claims import BEAT, EXPIRES, Claims
from medseg.cluster.process_identity import ProcessIdentity


class Clock:
    """A clock of one machine, which the test sets forward."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def machine(name: str, pid: int = 7) -> ProcessIdentity:
    return ProcessIdentity(name, f"machine of {name}", pid, "12345")


def files(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "claims"


def test_only_one_process_holds_a_claim_until_it_is_done(folder):
    with Claims(folder, identity=machine("a")) as one, Claims(folder, identity=machine("b")) as other:
        assert one.take("case 1")
        assert one.take("case 1")
        assert not other.take("case 1")
        assert other.take("case 1.0")  # a name that resembles the file of another claim
        one.finish("case 1")
        assert other.take("case 1")
        other.give_up("case 1")
        assert one.take("case 1")
    assert not folder.exists()


def test_a_claim_names_host_process_and_heartbeat(folder):
    with Claims(folder) as claims:
        claims.take("a")
        text = (folder / "a.0.claim").read_text()
        assert str(os.getpid()) in text
        (heartbeat,) = folder.glob("*.heartbeat")
        assert heartbeat.stem in text


def test_claims_of_a_dead_machine_expire_whatever_the_clocks_say(folder):
    """The observers' clocks differ by five minutes, and start anywhere."""
    dead = Claims(folder, identity=machine("dead"), beat=None).__enter__()
    assert dead.take("a")
    for start in (0.0, 300.0, 1e9):
        clock = Clock(start)
        with Claims(folder, identity=machine(f"observer {start}"), clock=clock) as observer:
            assert not observer.take("a")
            clock.now += EXPIRES - 1
            assert not observer.take("a")
            clock.now += 1
            assert observer.take("a")
            assert EXPIRES + BEAT < 60
            assert "a.0.claim" in files(folder)
            observer.give_up("a")
    with Claims(folder, identity=machine("last"), clock=Clock(-300.0)) as observer:
        observer.take("a")
        observer._clock.now += EXPIRES
        assert observer.take("a")
        observer.finish("a")
        assert not list(folder.glob("*.claim"))


def test_a_living_process_keeps_its_claim_however_long_it_works(folder):
    owner = Claims(folder, identity=machine("owner"), beat=None).__enter__()
    owner.take("a")
    clock = Clock(0.0)
    with Claims(folder, identity=machine("observer"), clock=clock) as observer:
        for number in range(20):
            owner._pulse(number)
            clock.now += EXPIRES - 1
            assert not observer.take("a")
        clock.now += 2 * EXPIRES
        assert observer.take("a")  # the heartbeat stopped


def test_only_one_of_several_observers_takes_over(folder):
    dead = Claims(folder, identity=machine("dead"), beat=None).__enter__()
    names = [f"case {number}" for number in range(30)]
    for name in names:
        dead.take(name)
    clocks = [Clock(index * 300.0) for index in range(4)]
    observers = [
        Claims(folder, identity=machine(f"observer {index}"), clock=clock).__enter__()
        for index, clock in enumerate(clocks)
    ]
    for observer, clock in zip(observers, clocks, strict=True):
        assert not any(observer.take(name) for name in names)
        clock.now += EXPIRES
    start, taken = threading.Barrier(len(observers)), []

    def take_all(observer):
        start.wait()
        taken.extend(name for name in names if observer.take(name))

    threads = [threading.Thread(target=take_all, args=(observer,)) for observer in observers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(names)
    for observer in observers:
        for name in list(observer.held):
            observer.finish(name)
        observer.__exit__(None, None, None)
    assert not list(folder.glob("*.claim"))


def test_a_claim_that_was_given_up_meanwhile_is_not_overruled(folder, monkeypatch):
    """An observer finds a claim expired; before it acts, the owner gives it up, and a third process begins anew."""
    owner = Claims(folder, identity=machine("owner"), beat=None).__enter__()
    owner.take("a")
    clock = Clock(0.0)
    observer = Claims(folder, identity=machine("observer"), clock=clock).__enter__()
    third = Claims(folder, identity=machine("third")).__enter__()
    observer.take("a")
    clock.now += EXPIRES
    create = observer._create

    def late(path):
        owner.give_up("a")
        assert third.take("a")
        return create(path)

    monkeypatch.setattr(observer, "_create", late)
    assert not observer.take("a")
    assert files(folder).count("a.1.claim") == 0
    assert third.held


def test_a_killed_process_of_this_machine_loses_its_claims_at_once(folder):
    code = (
        "import sys, time; from pathlib import Path; from medseg.cluster.claims import Claims\n"
        "claims = Claims(Path(sys.argv[1])); claims.__enter__(); claims.take('a'); print('ready', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        with Claims(folder) as claims:
            assert not claims.take("a")
            process.send_signal(signal.SIGKILL)
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended, but not waited for
            assert claims.take("a")
            claims.finish("a")
        assert not folder.exists()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_later_process_with_the_same_number_is_another_one(folder):
    here = ProcessIdentity.current()
    assert here.is_here
    assert here.is_running
    earlier = replace(here, started="1")
    assert not earlier.is_running
    Claims(folder, identity=earlier, beat=None).__enter__().take("a")
    with Claims(folder) as claims:
        assert claims.take("a")


def test_an_abandoned_loop_of_this_process_loses_its_claims(folder):
    abandoned = Claims(folder).__enter__()
    abandoned.take("a")
    with Claims(folder) as claims:
        assert claims.take("a")
    abandoned.__exit__(None, None, None)
    assert not folder.exists()


OTHER = '{"process": "x", "host": "a", "machine": "HERE", "pid": PID, "started": "1"}'


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", '{"process": "x"}', "[]", "[" * 100_000),
        *(OTHER.replace("PID", pid) for pid in ('"\\u0000"', "1e400", "[]", '"' + "1" * 4000 + '"')),
    ],
)
def test_a_claim_that_was_not_written_completely_expires(folder, content):
    folder.mkdir()
    (folder / "a.0.claim").write_text(content.replace("HERE", ProcessIdentity.current().machine))
    clock = Clock(0.0)
    with Claims(folder, clock=clock) as claims:
        assert not claims.take("a")
        clock.now += EXPIRES
        assert claims.take("a")


def test_claims_work_without_links(folder, monkeypatch):
    def refuse(*_):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    with Claims(folder, identity=machine("a")) as one, Claims(folder, identity=machine("b")) as other:
        assert one.take("a")
        assert not other.take("a")
    assert not folder.exists()


def test_claims_of_dead_processes_are_removed_once_their_work_is_done(folder):
    here = ProcessIdentity.current()
    Claims(folder, identity=replace(here, started="1"), beat=None).__enter__().take("a")
    with Claims(folder) as claims:
        claims.sweep(["b"])
        assert "a.0.claim" in files(folder)
        claims.sweep(["a"])
        assert "a.0.claim" not in files(folder)
    assert not folder.exists()


@pytest.mark.parametrize("name", ["new\nline", "\n", "a.1.claim", "-x", "it's", "ü 体"])
def test_any_file_name_can_be_claimed(folder, name):
    with Claims(folder, identity=machine("a")) as one, Claims(folder, identity=machine("b")) as other:
        assert one.take(name)
        assert not other.take(name)
        one.finish(name)
        assert other.take(name)
