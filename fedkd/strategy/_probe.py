"""Another strategy under watch: what the contract runs in place of a strategy to see what it does."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, final

import torch
from pydantic import Field
from torch import Tensor

from fedkd.config import StrategySettings, validate
from fedkd.data.samples import Samples
from fedkd.knowledge import Bundle, Knowledge
from fedkd.learner.base import ClientCard, OnView
from fedkd.learner.client import Client
from fedkd.learner.requests import Answer, Fit, Request
from fedkd.learner.server import Reply, Server
from fedkd.strategy.base import MethodCard, Payload, Strategy
from fedkd.strategy.registry import find


def expect(condition: bool, strategy: str | type[Strategy], text: str) -> None:
    """Fail with a text that begins with the strategy's name, unless the condition holds."""
    if not condition:
        raise AssertionError(f"{name_of(strategy)}: {text}")


def name_of(strategy: str | type[Strategy]) -> str:
    """Return a strategy's name for messages."""
    return strategy if isinstance(strategy, str) else strategy.__qualname__


def kind_name(payload: Payload | type | None) -> str:
    """Return the name of a payload type, or ``nothing``."""
    kind = Bundle if isinstance(payload, Mapping) else payload
    return "nothing" if kind in {None, type(None)} else str(getattr(kind, "__name__", kind))


@final
class Probe(Strategy):
    """Another strategy under watch: it must keep to its card, and one of its clients may be made to misbehave."""

    card = MethodCard(title="Another strategy under watch (for tests)", authors="-", year=2017)

    class Settings(StrategySettings):
        """Who is watched, and who misbehaves."""

        of: str = Field("local", description="the strategy under watch")
        settings: dict[str, Any] = Field({}, description="its settings")
        client: str = Field("", description="key of the client that misbehaves")
        round: int = Field(1, ge=1, description="round in which it does")
        fault: Literal["none", "raise", "nan"] = Field("none", description="fail, or send a NaN")

    settings: Settings
    _watched = frozenset({"_inner", "card"})

    def __init__(self, settings: StrategySettings | None = None) -> None:
        """Build the strategy under watch."""
        super().__init__(settings)
        found = find(self.settings.of)
        self._inner = found(validate(found.Settings, self.settings.settings, where=self.settings.of)).sealed()
        self.card = self._inner.card  # type: ignore[misc]  # that of what it watches

    def client_models(self, client: ClientCard) -> Mapping[str, str | OnView]:
        """Return the watched strategy's."""
        return self._inner.client_models(client)

    def client_setup(self, client: Client) -> None:
        """Let the watched strategy do it."""
        self._inner.client_setup(client)

    def client_round(self, client: Client, received: Any) -> Knowledge | None:  # noqa: ANN401
        """Let the watched strategy do it; misbehave if it is time to."""
        here = client.card.key == self.settings.client and client.round == self.settings.round
        if here and self.settings.fault == "raise":
            raise RuntimeError(f"{client.card.key} fails in round {client.round}, on purpose")
        reply = self._inner.client_round(client, received)
        return _damaged(reply) if reply is not None and here and self.settings.fault == "nan" else reply

    def client_predict(self, client: Client, samples: Samples) -> Tensor:
        """Let the watched strategy do it."""
        return self._inner.client_predict(client, samples)

    def server_setup(self, server: Server) -> None:
        """Let the watched strategy do it."""
        with self._watching(server):
            self._inner.server_setup(server)

    def collect(self, server: Server, replies: Iterator[Reply[Any]]) -> Any:  # noqa: ANN401
        """Let the watched strategy do it."""
        return self._inner.collect(server, replies)

    def server_round(self, server: Server, collected: Any) -> Knowledge | None:  # noqa: ANN401
        """Let the watched strategy do it."""
        with self._watching(server):
            return self._inner.server_round(server, collected)

    def download(self, server: Server, client: ClientCard, common: Knowledge | None) -> Knowledge | None:
        """Return the watched strategy's."""
        return self._inner.download(server, client, common)

    def server_model(self, client: ClientCard) -> str | None:
        """Return the watched strategy's."""
        return self._inner.server_model(client)

    def ensemble(self, logits: Tensor, clients: Sequence[ClientCard]) -> Tensor | None:
        """Return the watched strategy's."""
        return self._inner.ensemble(logits, clients)

    @contextmanager
    def _watching(self, server: Server) -> Iterator[None]:
        ask = server.ask

        def watched(request: Request) -> Answer:
            trains = isinstance(request, Fit) and not self.card.server_training
            expect(not trains, type(self._inner), "card.server_training is false, but the server trains a model")
            return ask(request)

        server.ask = watched
        try:
            yield
        finally:
            server.ask = ask


PROBE = f"{Probe.__module__}:{Probe.__qualname__}"


def _damaged(knowledge: Knowledge) -> Knowledge:
    """Return a payload with one NaN in its first floating-point tensor."""
    tensors = {name: tensor.clone() for name, tensor in knowledge.to_tensors().items()}
    next(tensor for tensor in tensors.values() if tensor.is_floating_point()).view(-1)[0] = torch.nan
    return type(knowledge).from_tensors(tensors)
