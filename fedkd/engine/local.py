"""The in-process grid: no Ray, no process, no serialised state; for tests, debugging, notebooks and every system."""

from collections.abc import Iterator, Sequence

from flwr.app import Message

from fedkd.app.client import ClientSide, ClientTask
from fedkd.app.state import State, lasting
from fedkd.config import Experiment
from fedkd.engine.grid import SimulationGrid, Unit
from fedkd.seeding import generators_restored


class LocalGrid(SimulationGrid[State]):
    """A grid that runs every client in this process."""

    def __init__(self, experiment: Experiment) -> None:
        """Prepare to act for every client."""
        super().__init__(experiment)
        self._side = ClientSide(experiment)

    def run_units(self, units: Sequence[Unit]) -> Iterator[tuple[str, Message, State | None]]:
        """Run unit after unit."""
        for unit in units:
            tasks = [ClientTask(message, key, self.state_for(message, key)) for message, key in unit]
            with generators_restored():  # the strategy, which asks for the replies, may be in the middle of its draws
                outcomes = self._side.handle(tasks)
            for (_, key), outcome in zip(unit, outcomes, strict=True):
                yield key, outcome.reply, outcome.state and lasting(outcome.state)

    def read_state(self, state: State) -> State:
        """Return the state, which is tensors already."""
        return state

    def store_state(self, key: str, state: State) -> State:
        """Return the state as it is."""
        return state
