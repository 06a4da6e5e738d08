"""Calibration: how well a classifier's confidence matches its accuracy, and how to make it match better.

Measures take logits or probabilities (decision 15 says how they tell); the negative log-likelihood and the fits take
logits only. All numbers are to be taken on held-out samples.
"""

from fedkd.calibration.bins import Reliability as Reliability
from fedkd.calibration.bins import adaptive_calibration_error as adaptive_calibration_error
from fedkd.calibration.bins import class_wise_calibration_error as class_wise_calibration_error
from fedkd.calibration.bins import expected_calibration_error as expected_calibration_error
from fedkd.calibration.bins import maximum_calibration_error as maximum_calibration_error
from fedkd.calibration.bins import reliability as reliability
from fedkd.calibration.fit import Scaling as Scaling
from fedkd.calibration.fit import fit_matrix_scaling as fit_matrix_scaling
from fedkd.calibration.fit import fit_temperature as fit_temperature
from fedkd.calibration.fit import fit_temperatures as fit_temperatures
from fedkd.calibration.fit import fit_vector_scaling as fit_vector_scaling
from fedkd.calibration.scores import brier as brier
from fedkd.calibration.scores import confidence_gap as confidence_gap
from fedkd.calibration.scores import entropy as entropy
from fedkd.calibration.scores import negative_log_likelihood as negative_log_likelihood
