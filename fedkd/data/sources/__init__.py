"""Data sets: the built-in ones by name, the user's own by path. Read from disk; only if asked, downloaded first."""

from fedkd.data.sources.dataset import DataSet as DataSet
from fedkd.data.sources.files import DATA_VARIABLE as DATA_VARIABLE
from fedkd.data.sources.loading import default_folder as default_folder
from fedkd.data.sources.loading import load as load
from fedkd.data.sources.loading import names as names
