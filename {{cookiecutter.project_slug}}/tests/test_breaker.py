"""The circuit breaker and the retry budget, by a clock of the test's own."""

from hypothesis import settings, strategies
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from {{ cookiecutter.package_name }}.outbound.breaker import Breaker, RetryBudget, State

LEAST, RATE, WINDOW, REST, LONGEST_REST = 4, 0.5, 10, 3, 20


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make_breaker(clock: Clock, seen: list[State]) -> Breaker:
    """A breaker with short numbers."""
    return Breaker(clock, seen.append, least=LEAST, rate=RATE, window=WINDOW, rest=REST, longest_rest=LONGEST_REST)


class BreakerLife(RuleBasedStateMachine):
    """A breaker beside a model of it that keeps everything and forgets nothing."""

    @initialize()
    def begin(self) -> None:
        """All is well."""
        self.clock, self.seen = Clock(), list[State]()
        self.breaker = make_breaker(self.clock, self.seen)
        self.running: list[tuple[int, int]] = []  # (what `admit` returned, how many changes there had been)
        self.ended: list[tuple[int, bool]] = []  # (second, failed), since it was last closed
        self.state: State = "closed"
        self.changes = 0
        self.rest = float(REST)
        self.until = 0.0

    def enter(self, state: State) -> None:
        """The model changes its state."""
        self.state = state
        self.changes += 1

    @rule(seconds=strategies.sampled_from([0.1, 0.9, 1, 2.5, 7, 30]))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.clock.now += seconds

    @precondition(lambda self: self.breaker.resting == 0)
    @rule()
    def start(self) -> None:
        """An attempt begins."""
        assert self.state != "half_open", "one probe at a time"
        if self.state == "open":
            assert self.clock.now >= self.until, "not before its rest is over"
            self.enter("half_open")
        self.running.append((self.breaker.admit(), self.changes))

    @precondition(lambda self: self.running)
    @rule(which=strategies.integers(0, 1000), succeeded=strategies.sampled_from([True, False, False, None]))
    def end(self, which: int, succeeded: bool | None) -> None:
        """One of them ends."""
        ticket, changes = self.running.pop(which % len(self.running))
        self.breaker.settle(ticket, succeeded)
        if changes != self.changes:
            return
        if self.state == "half_open":
            if succeeded:
                self.rest, self.ended = REST, []
                self.enter("closed")
                return
            if succeeded is False:
                self.rest = min(2 * self.rest, LONGEST_REST)
                self.until = self.clock.now + self.rest
            self.enter("open")
        elif succeeded is not None:
            second = int(self.clock.now)
            self.ended.append((second, not succeeded))
            recent = [failed for when, failed in self.ended if when > second - WINDOW]
            if not succeeded and len(recent) >= LEAST and sum(recent) >= RATE * len(recent):
                self.until = self.clock.now + self.rest
                self.enter("open")

    @invariant()
    def agrees(self) -> None:
        """The breaker is where the model is, tells each change once, and lets calls through exactly when it may."""
        if not hasattr(self, "breaker"):
            return
        assert self.breaker.state == self.state
        assert len(self.seen) == self.changes
        may_start = self.state == "closed" or (self.state == "open" and self.clock.now >= self.until)
        assert (self.breaker.resting == 0) == may_start


TestBreakerLife = BreakerLife.TestCase
TestBreakerLife.settings = settings(max_examples=100, stateful_step_count=40, deadline=None, database=None)


def test_few_failures_open_nothing() -> None:
    """It is their part of all attempts that counts."""
    clock, seen = Clock(), list[State]()
    breaker = make_breaker(clock, seen)
    for _ in range(2):
        for succeeded in (True, True, True, False, False):
            breaker.settle(breaker.admit(), succeeded)
    assert seen == []
    for _ in range(2):
        breaker.settle(breaker.admit(), succeeded=False)
    assert seen == ["open"], "six of twelve"


def test_window_forgets() -> None:
    """Failures that are older than the window open nothing."""
    clock, seen = Clock(), list[State]()
    breaker = make_breaker(clock, seen)
    for _ in range(LEAST - 1):
        breaker.settle(breaker.admit(), succeeded=False)
    clock.now += WINDOW + 1
    breaker.settle(breaker.admit(), succeeded=False)
    assert seen == []


def test_window_forgets_a_second_at_a_time() -> None:
    """What came later than the oldest still counts when that is forgotten."""
    clock, seen = Clock(), list[State]()
    breaker = make_breaker(clock, seen)
    for seconds in (0, WINDOW - 1, 0, 2):
        clock.now += seconds
        breaker.settle(breaker.admit(), succeeded=False)
    assert seen == [], "one of the four is too old"
    breaker.settle(breaker.admit(), succeeded=False)
    assert seen == ["open"]


def test_rests_grow_to_their_bound_and_begin_anew() -> None:
    """Each probe that fails doubles the rest; one that succeeds ends the trouble."""
    clock, seen = Clock(), list[State]()
    breaker = make_breaker(clock, seen)
    for _ in range(LEAST):
        breaker.settle(breaker.admit(), succeeded=False)
    rests = []
    for _ in range(5):
        rests.append(breaker.resting)
        clock.now += breaker.resting
        breaker.settle(breaker.admit(), succeeded=False)
    assert rests == [3, 6, 12, 20, 20]
    clock.now += breaker.resting
    breaker.settle(breaker.admit(), succeeded=True)
    assert (breaker.state, breaker.resting) == ("closed", 0)
    for _ in range(LEAST):
        breaker.settle(breaker.admit(), succeeded=False)
    assert breaker.resting == REST


def test_probe_that_is_given_up_makes_room_for_the_next() -> None:
    """A caller who leaves during the probe says nothing of the service."""
    clock, seen = Clock(), list[State]()
    breaker = make_breaker(clock, seen)
    for _ in range(LEAST):
        breaker.settle(breaker.admit(), succeeded=False)
    clock.now += REST
    probe = breaker.admit()
    assert breaker.resting > 0
    breaker.settle(probe, succeeded=None)
    assert breaker.resting == 0


def test_retries_are_a_share_of_the_calls() -> None:
    """However many calls fail: a fifth of them, and ten."""
    clock = Clock()
    budget, retries = RetryBudget(clock, share=0.2, per_second=1, reserve=10), 0
    for _ in range(1000):
        budget.earn()
        while budget.can_spend():
            budget.spend()
            retries += 1
    assert retries == 209  # the first call earns nothing, as the reserve is full
    clock.now += 4.1
    budget.earn()
    assert budget.can_spend(), "a service that is seldom called has its retries too"
