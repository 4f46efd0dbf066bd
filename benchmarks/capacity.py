"""Simulate a day of calls: which resource is used how much, and what saturates first.

The model is a fluid one, in steps of a second, without chance:

- Most calls come in runs that are queued at the full hour. The others come one by one, evenly over
  the day, each in a run of its own.
- Runs wait in Dagster's queue. The daemon launches one after the other, while fewer than
  `max_concurrent_runs` are in progress.
- A run makes its calls at the pace that the slowest of these allows: its `max_in_flight`; its own
  writes to the event log, by one process; its share of the function's instances; its share of what
  the event log takes from all processes.
- Each call stores and reads its chunks in the messages bucket.

Not in the model: failures and retries, cold starts, sensors, schedules, the web page.

Needs the standard library alone: `python benchmarks/capacity.py`.
"""

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

HOUR = 3_600
DAY = 24 * HOUR
MINUTES = DAY // 60
SATURATED = 0.999  # of a resource, for a minute


@dataclass(frozen=True)
class Inputs:
    """What the resources allow. Measured figures are of a machine with two cores."""

    launches_per_second: float = 0.55  # benchmarks/launches.py, PostgreSQL, one at a time
    max_concurrent_runs: int = 10  # Dagster's default, in its QueuedRunCoordinator
    run_seconds: float = 0.34  # benchmarks/event_log.py: a run with one call, less its call
    partition_seconds: float = 0.054  # benchmarks/event_log.py: a partition, on PostgreSQL
    lines_per_second: float = 384.0  # benchmarks/event_log.py: log lines, 4 processes
    materializations_per_second: float = 178.0  # the same: materializations, 4 processes
    lines_per_call: float = 2.0  # those of main.py; a task's own come on top
    asset_events_per_call: float = 2.0  # planned, and materialized
    max_in_flight: int = 10  # the default of `run_partitions`
    call_seconds: float = 2.0  # an assumption: the time of a task in the function
    function_max_instances: int = 10  # the default of infra/function.tf
    function_concurrency: int = 1  # the same
    chunks_per_call: float = 2.0  # docs/costs.md: a call that logs at its end
    bucket_writes_per_second: float = 1_000.0  # cloud.google.com/storage/docs/request-rate
    bucket_reads_per_second: float = 5_000.0  # the same; a bucket scales up from there
    reads_per_second_of_a_run: float = 10.0  # backfills.md: requests for chunks, besides found ones
    run_mebibytes: float = 146.0  # benchmarks/partitions.py: a step's process; a run has another
    call_mebibytes: float = 0.11  # benchmarks/partitions.py: a call in flight
    machine_mebibytes: float = 8_192.0  # an assumption: the memory for runs
    steady_share: float = 0.01  # an assumption: calls that come one by one

    @cached_property
    def events_per_second(self) -> float:
        """How many calls a second all processes together can write to the event log."""
        lines = self.lines_per_call / self.lines_per_second
        return 1 / (lines + self.asset_events_per_call / self.materializations_per_second)

    @cached_property
    def function_calls_per_second(self) -> float:
        """How many calls a second the function finishes, with all instances busy."""
        return self.function_max_instances * self.function_concurrency / self.call_seconds

    @cached_property
    def run_calls_per_second(self) -> float:
        """How many calls a second one run makes, if nothing else holds it up."""
        return min(self.max_in_flight / self.call_seconds, 1 / self.partition_seconds)


@dataclass(frozen=True)
class Scenario:
    """A day of calls."""

    name: str
    calls: int
    calls_per_run: int
    inputs: Inputs = Inputs()


@dataclass(slots=True)
class Run:
    """A run, in the queue or in progress."""

    queued: int
    calls: float
    earliest_end: float = 0.0


@dataclass
class Result:
    """What a simulated day was like."""

    finished_calls: float = 0.0
    unfinished_runs: int = 0
    longest_queue: int = 0
    delays: list[int] = field(default_factory=list)  # from the queue to the end, in seconds
    minutes: dict[str, list[float]] = field(default_factory=dict)  # use of each resource, 0 to 1
    waits: Counter[str] = field(default_factory=Counter)  # seconds that something waited for each

    def use(self, second: int, resource: str, share: float) -> None:
        """Record that a resource is used during a second."""
        minutes = self.minutes.get(resource) or self.minutes.setdefault(resource, [0.0] * MINUTES)
        minutes[second // 60] += share / 60


def arrivals(scenario: Scenario, second: int) -> Iterator[Run]:
    """The runs that are queued in a second."""
    steady = round(scenario.calls * scenario.inputs.steady_share)
    if second < DAY - HOUR:  # so that the last ones can finish within the day
        yield from (Run(second, 1) for _ in range(part(steady, second, DAY - HOUR)))
    if second % HOUR == 0:
        left = part(scenario.calls - steady, second // HOUR, DAY // HOUR)
        while left > 0:
            yield Run(second, min(left, scenario.calls_per_run))
            left -= scenario.calls_per_run


def part(total: int, number: int, parts: int) -> int:
    """How many of `total` are in one of some parts of nearly the same size."""
    return (number + 1) * total // parts - number * total // parts


def simulate(scenario: Scenario) -> Result:
    """Simulate a day, second by second."""
    inputs, result = scenario.inputs, Result()
    queue: deque[Run] = deque()
    in_progress: list[Run] = []
    launched = 0.0  # what the daemon has done for the next launch, 0 to 1
    for second in range(DAY):
        queue.extend(arrivals(scenario, second))
        result.longest_queue = max(result.longest_queue, len(queue))
        busy = 0.0
        if queue and len(in_progress) < inputs.max_concurrent_runs:
            launched += inputs.launches_per_second
            busy = 1.0
        while launched >= 1 and queue and len(in_progress) < inputs.max_concurrent_runs:
            launched -= 1
            run = queue.popleft()
            run.earliest_end = second + inputs.run_seconds + inputs.call_seconds
            in_progress.append(run)
        result.use(second, "launches by the daemon", busy)
        result.use(second, "runs in progress", len(in_progress) / inputs.max_concurrent_runs)
        if queue:
            is_full = len(in_progress) >= inputs.max_concurrent_runs
            result.waits["runs in progress" if is_full else "launches by the daemon"] += 1
        result.finished_calls += make_calls(inputs, in_progress, second, result)
        for run in [run for run in in_progress if run.calls <= 0 and run.earliest_end <= second]:
            in_progress.remove(run)
            result.delays.append(second - run.queued)
    result.unfinished_runs = len(queue) + len(in_progress)
    return result


def make_calls(inputs: Inputs, in_progress: list[Run], second: int, result: Result) -> float:
    """Let the runs in progress make the calls of a second; return how many they were."""
    wishes = [min(run.calls, inputs.run_calls_per_second) for run in in_progress]
    wished = sum(wishes)
    shares = {
        "instances of the function": inputs.function_calls_per_second,
        "writes to the event log": inputs.events_per_second,
    }
    tightest = min(shares, key=lambda name: shares[name])
    pace = min(1.0, shares[tightest] / wished) if wished else 0.0
    if wished and pace < 1:
        result.waits[tightest] += 1
    for run, wish in zip(in_progress, wishes, strict=True):
        run.calls -= pace * wish
        if run.calls < 1e-6:
            run.calls = 0.0
    made = pace * wished
    in_flight = made * inputs.call_seconds
    chunks = made * inputs.chunks_per_call
    reads = chunks + len(in_progress) * inputs.reads_per_second_of_a_run
    memory = 2 * len(in_progress) * inputs.run_mebibytes + in_flight * inputs.call_mebibytes
    for name, calls_per_second in shares.items():
        result.use(second, name, made / calls_per_second)
    result.use(second, "writes to the bucket", chunks / inputs.bucket_writes_per_second)
    result.use(second, "reads from the bucket", reads / inputs.bucket_reads_per_second)
    result.use(second, "memory of the machine", memory / inputs.machine_mebibytes)
    return made


def scenarios() -> list[Scenario]:
    """The days that docs/capacity.md describes."""
    defaults = Inputs()
    large = replace(defaults, function_max_instances=100, max_in_flight=50)
    million = 1_000_000
    return [
        Scenario("100 calls, one in each run", 100, 1),
        Scenario("10,000 calls, one in each run", 10_000, 1),
        Scenario("10,000 calls, 1,000 in each run", 10_000, 1_000),
        Scenario("1,000,000 calls, one in each run, 100 instances", million, 1, large),
        Scenario("1,000,000 calls, 1,000 in each run, all defaults", million, 1_000),
        Scenario("1,000,000 calls, 1,000 in each run, 100 instances", million, 1_000, large),
    ]


def print_result(scenario: Scenario, result: Result) -> None:
    """Print what a day was like."""
    print(f"\n{scenario.name}\n")
    print(f"  {'':28}{'mean use':>10}{'peak minute':>13}{'waited for':>14}")
    for name, minutes in result.minutes.items():
        mean, peak = sum(minutes) / len(minutes), max(minutes)
        print(f"  {name:28}{mean:10.1%}{peak:13.1%}{result.waits[name] / HOUR:12.1f} h")
    print(f"\n  calls made        {result.finished_calls:12,.0f} of {scenario.calls:,}")
    print(f"  longest queue     {result.longest_queue:12,} runs")
    if result.unfinished_runs:
        print(f"  not finished      {result.unfinished_runs:12,} runs, at the end of the day")
    if result.delays:
        delays = sorted(result.delays)
        print(f"  queued until done {delays[len(delays) // 2]:12,} s, the median run")
        print(f"                    {delays[-1]:12,} s, the slowest run")
    saturated = [name for name, minutes in result.minutes.items() if max(minutes) > SATURATED]
    saturated.sort(key=lambda name: -result.waits[name])
    print(f"  saturates first   {saturated[0] if saturated else 'nothing'}")


def main() -> None:
    """Simulate each day, and print."""
    for scenario in scenarios():
        print_result(scenario, simulate(scenario))


if __name__ == "__main__":
    main()
