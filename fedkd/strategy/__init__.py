"""What a method is, and how it is found."""

from fedkd.config import StrategySettings as StrategySettings
from fedkd.learner.base import ClientCard as ClientCard
from fedkd.learner.base import OnView as OnView
from fedkd.learner.client import Client as Client
from fedkd.learner.server import Reply as Reply
from fedkd.learner.server import Server as Server
from fedkd.strategy.base import MethodCard as MethodCard
from fedkd.strategy.base import Replies as Replies
from fedkd.strategy.base import Strategy as Strategy
