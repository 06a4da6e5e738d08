"""Clients with samples of their own: a run over nodes that see only their files ends as the simulation does."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import tomllib
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid

from fedkd import config, simulate
from fedkd.app import flower
from fedkd.app.flower import make_client_app, make_server_app
from fedkd.app.run_folder import read_lines
from fedkd.config import Experiment, parse
from fedkd.data.dividing import divide
from fedkd.engine.local import LocalGrid
