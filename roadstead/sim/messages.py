"""The message history: does every client see what it should, whatever happens to the services, the network and itself?

Four to eight users with one to three devices each, two access nodes, the message services before a disk of theirs. The
seed says which strategies, limits and faults there are, and what the users do; then everything heals and gets quiet.
All that clients see is written down, and judged by the checker (`roadstead.history`), as any other history.

Invariants (I1 to I13 are the checker's, at the end):
    H1  Once all is healed, all sends are answered and all clients have caught up, within `HEAL_MS_MAX`.
    H2  When it is quiet, each client has all conversations of its user, shows all messages of what it holds of them as
        the log has them, and counts as unread what the pointers say.
    H3  At every transaction the ledger keeps its invariants, and whenever asked the counters of unread messages and the
        sync versions are what the rows say.
    H4  An entry with write fan-out is in the timeline of everybody who was in the conversation then.

Of I6 one thing is not asked for: the order over all conversations, where the earlier message is fanned out in steps. It
is in its own sender's timeline when its turn has come, which a later message elsewhere does not wait for.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from msgspec.structs import replace as replaced

from im.core import timelines
from im.core.facts import Key
from im.core.fan_out import PRESETS
from im.core.ledger import LedgerSettings
from im.core.unread import unread
from roadstead.history.check import check
from roadstead.history.events import Event
from roadstead.history.report import Report as Verdict
from roadstead.sim.faults import Faults
from roadstead.sim.host import Host
from roadstead.sim.messages_access import AccessNode
from roadstead.sim.messages_client import Kept, Phone
from roadstead.sim.messages_guards import Guards, Shape
from roadstead.sim.messages_record import Record
from roadstead.sim.messages_service import Services
from roadstead.sim.messages_store import Rows
from roadstead.sim.messages_user import User
from roadstead.sim.report import Report
from roadstead.sim.world import SimWorld

__all__ = ["FAULTS", "run", "run_history"]

SERVICES = "im"
NODES = ["access-1", "access-2"]
CHAOS_MS = 10_000
HEAL_MS_MAX = 90_000
QUIET_MS = 3_500
"""How long nothing may be left to do: more than an audit, a hint and a gap take."""
LOOK_MS = 250
FAULTS = Faults(
    loss_permille=8,
    duplicate_permille=15,
    tail_permille=10,
    tail_ms_max=1_500,
    cut_every_ms=5_000,
    cut_ms_max=1_500,
    crash_every_ms=2_500,
    stall_every_ms=4_000,
    stall_ms_max=1_500,
)


class Referee:
    """Knows all hosts, and judges in the end."""

    def __init__(self, world: SimWorld, rows: Rows, guards: Guards, shape: Shape) -> None:
        self.world = world
        self.rows = rows
        self.guards = guards
        self.shape = shape
        self.counts: Counter[str] = Counter()
        self.events: list[Event] = []
        self.record = Record(self.events, "referee", self._now)
        self.phones: dict[str, Phone] = {}
        self.services: Services | None = None
        self._stale: set[tuple[tuple[str, str], str]] = set()
        """Hidden conversations of devices (user, name), which need not know of what came last there."""

    def _now(self) -> int:
        return self.world.now

    # ------------------------------------------------------------ hosts

    def service(self, host: Host) -> Services:
        """Begin a life of the services."""
        if host.incarnation > 1:
            self.record.fault("kill", SERVICES)
            self.counts["crashes"] += 1
        self.services = Services(host, self.rows, self.guards, self.shape, self.counts)
        return self.services

    def add_phone(self, user: str, device: str, habits: User) -> None:
        """Add a device."""
        kept, name = Kept(user, device), f"{user}/{device}"
        record = Record(self.events, name, self._now, user=user)

        def phone(host: Host) -> Phone:
            self.phones[name] = Phone(host, kept, record, nodes=NODES, counts=self.counts, act=habits.act)
            return self.phones[name]

        self.world.add(name, phone)

    # ------------------------------------------------------------ the end

    def stop(self) -> None:
        """Users and operators do nothing any more; everybody comes online."""
        for phone in self.phones.values():
            phone.act_no_more()
        if self.services is not None:
            self.services.is_operated = False

    def is_quiet(self) -> bool:
        """Return whether there is nothing left to do."""
        is_idle = self.services is not None and self.services.is_idle()
        return is_idle and all(phone.is_quiet() for phone in self.phones.values())

    def look(self, *, has_asked: bool) -> list[str]:
        """Compare each client with the rows (H2); return what is wrong.

        What is hidden a client without the note about it only knows from a list: if it `has_asked` for that.
        """
        wrong: list[str] = []
        for name, phone in self.phones.items():
            phone.view.check_invariants()
            listed = {int(document["cid"]) for document in self.rows.listed(phone.kept.user)}
            held = {int(one.cid) for one in phone.conversations() if not one.is_hidden}
            if has_asked and listed != held:
                wrong.append(f"H2: {name} has {sorted(held - listed)}, and has not {sorted(listed - held)}")
            for part in self.rows.parts(phone.kept.user):
                conversation = phone.view.conversation(str(part.cid))
                if conversation is None or part.cid not in listed:
                    continue
                if conversation.unread != unread(part):
                    counts = f"{conversation.unread} unread of {part.cid}, not {unread(part)}"
                    wrong.append(f"H2: {name} counts {counts}")
                if conversation.hi != part.max_seq:
                    wrong.append(f"H2: {name} has {part.cid} to {conversation.hi}, not to {part.max_seq}")
        return wrong

    def may_overtake(self, kind: str, earlier: Key) -> bool:
        """Return whether an inversion is one that nobody promised to prevent."""
        rows = self.rows
        return kind == "timeline" and rows.keys[earlier] in rows.stepped

    def look_at_timelines(self) -> list[str]:
        """Return which entries are not in the timelines of those who are owed them (H4)."""
        rows = self.rows
        given = {user: {message.n for message in timeline.values()} for user, timeline in rows.timelines.items()}
        stays: defaultdict[int, list[tuple[str, int, int]]] = defaultdict(list)
        for (cid, user), ranges in rows.stays.items():
            stays[cid] += [(user, one.first, one.last or rows.ends[cid].seq + 1) for one in ranges]
        for cid, conversation in rows.conversations.items():
            if conversation.group is None:
                stays[cid] = [(user, 1, rows.ends[cid].seq + 1) for user in rows.users(cid)]
        return [
            f"H4: ({message.cid}, {message.seq}) is not in the timeline of {user}"
            for message in rows.written
            for user, joined, left in stays[message.cid]
            if joined <= message.seq < left and message.n not in given.get(user, ())
        ]

    def note_hidden(self, phone: Phone) -> None:
        """What is hidden is in no list, and a client may lack the end of it until something new comes."""
        listed = {int(document["cid"]) for document in self.rows.listed(phone.kept.user)}
        for part in self.rows.parts(phone.kept.user):
            held = phone.view.conversation(str(part.cid))
            hi = held.hi if held is not None else 0
            if part.cid not in listed and hi < part.max_seq:
                self._stale.add((phone.record.device, str(part.cid)))
                phone.record.missing(part.cid, hi, part.max_seq + 1)

    def show(self, phone: Phone) -> None:
        """Write down what a client shows. What was recalled while it was not in the group is shown to it as it was."""
        for conversation in phone.conversations():
            visible = self.rows.visible(int(conversation.cid), phone.kept.user)
            is_stale = (phone.record.device, conversation.cid) in self._stale
            if visible is not None and not conversation.last_seq and not is_stale:
                phone.record.shown(conversation, visible[0])

    def judge(self) -> Verdict:
        """Let the checker judge."""
        self.record.settle(self.rows.waited)
        self.record.final(self.rows, [phone.record.device for phone in self.phones.values()])
        return check(self.events)


def run_history(
    seed: int, *, guards: Guards | None = None, crash_at: str | None = None, faults: Faults = FAULTS
) -> Report:
    """Run one history: `CHAOS_MS` of bad time, then healing.

    Raises:
        Violation: an invariant does not hold.
    """
    with _small_steps():
        return _run(seed, guards or Guards(), crash_at, faults)


def run(seed: int, without: Collection[str] = ()) -> Report:
    """Run one history without the named guards."""
    return run_history(seed, guards=Guards().without(*without))


@contextmanager
def _small_steps() -> Iterator[None]:
    """Have fan-outs take many steps, so that few members are enough to die in the midst of one."""
    names = ("AT_ONCE_MAX", "STEP_MAX", "TURN_MAX")
    before = {name: getattr(timelines, name) for name in names}
    for name, value in zip(names, (3, 9, 5), strict=True):
        setattr(timelines, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(timelines, name, value)


def _run(seed: int, guards: Guards, crash_at: str | None, faults: Faults) -> Report:
    world = SimWorld(seed, faults, crash_at=crash_at)
    referee = _people(world, guards)
    world.run(CHAOS_MS)
    referee.stop()
    world.heal()
    _settle(world, referee)
    wrong = referee.look(has_asked=False)
    verdict = _finish(world, referee)
    referee.counts.update(deliveries=verdict.counts["deliveries"], logged=verdict.counts["log entries"])
    for violation in verdict.violations:
        if violation.invariant == "I6" and referee.may_overtake(violation.kind, violation.keys[0]):
            continue
        world.fail(f"{violation.invariant} {violation.kind}: {violation.says}")
    if verdict.blind:
        world.fail(f"the checker is blind: {verdict.blind[0]}")
    for what in wrong + referee.look(has_asked=True) + referee.look_at_timelines():
        world.fail(what)
    referee.counts.update({f"reached {point}": times for point, times in world.reached.items()})
    referee.counts.update({f"judged {finding.invariant}": finding.looked for finding in verdict.findings})
    return world.report(dict(referee.counts))


def _settle(world: SimWorld, referee: Referee) -> None:
    """Wait until it has been quiet for long enough (H1)."""
    quiet_since = world.now
    while world.now - quiet_since < QUIET_MS:
        world.run(world.now + LOOK_MS)
        referee.stop()
        if not referee.is_quiet():
            quiet_since = world.now
        if world.now > CHAOS_MS + HEAL_MS_MAX:
            world.fail("H1: it does not get quiet")


def _finish(world: SimWorld, referee: Referee) -> Verdict:
    """Let all clients read what is left, and judge."""
    phones = referee.phones.values()
    for phone in phones:
        referee.note_hidden(phone)
    referee.record.quiet([phone.record.device for phone in phones])
    world.run(world.now + 1)
    for phone in phones:
        referee.show(phone)
        phone.finish(world.local(f"{phone.kept.user}/{phone.kept.device}"))
    until = world.now + HEAL_MS_MAX
    while not all(phone.is_finished() for phone in phones):
        world.run(world.now + LOOK_MS)
        if world.now > until:
            world.fail("H1: not all can be read")
    for phone in phones:
        referee.show(phone)
    return referee.judge()


def _people(world: SimWorld, guards: Guards) -> Referee:
    """Add the hosts to an empty world, as the seed wants them."""
    dice = world.dice
    users = [str(11 + number) for number in range(dice.between(4, 8))]
    silent = [str(101 + number) for number in range(52)]
    policy = PRESETS[dice.pick(sorted(PRESETS))]
    policy = replaced(policy, write_members_max=dice.pick((policy.write_members_max, dice.between(3, 8), 500)))
    settings = LedgerSettings(
        policy=policy,
        conversation_ids=dice.pick(("counted", "special")),
        recall_window_ms=dice.pick((3_000, 120_000)),
        remembered_max=dice.pick((2, 100_000)),
    )
    shape = Shape(dice.pick((2, 8, 64)), dice.pick((4, 30, 120)), dice.pick((0, 12, 30)))
    referee = Referee(world, Rows(settings), guards, shape)
    world.add(SERVICES, referee.service)
    for node in NODES:
        world.add(node, lambda host: AccessNode(host, guards))
    devices = [(user, name) for user in users for name in ("a", "b", "c")[: dice.between(1, 3)]]
    for user, device in devices:
        peers = [other for other in users if other != user or dice.chance(100)]
        habits = User(
            peers, silent, 60 * len(devices), members_max=dice.between(2, len(silent)), is_reader=dice.chance(400)
        )
        referee.add_phone(user, device, habits)
    return referee
