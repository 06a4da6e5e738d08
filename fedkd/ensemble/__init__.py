"""Combining what several teachers know into one, by the field's taxonomy: plain means, weights, robust rules, streams.

A rule takes the logits of ``K`` teachers for ``N`` samples and ``C`` classes, shape ``(K, N, C)``, and returns one
table ``(N, C)`` of the same type; its docstring says whether that holds logits or probabilities. All rules compute in
float64, and none depends on the order of the teachers by a single bit.
"""

from fedkd.ensemble.class_wise import leave_one_out as leave_one_out
from fedkd.ensemble.class_wise import weighted_class_means as weighted_class_means
from fedkd.ensemble.geometric import geometric_median as geometric_median
from fedkd.ensemble.mean import enhanced_era as enhanced_era
from fedkd.ensemble.mean import era as era
from fedkd.ensemble.mean import mean_logits as mean_logits
from fedkd.ensemble.mean import mean_probabilities as mean_probabilities
from fedkd.ensemble.mean import mean_standardised_logits as mean_standardised_logits
from fedkd.ensemble.mean import reduce_entropy as reduce_entropy
from fedkd.ensemble.mean import sharpen as sharpen
from fedkd.ensemble.mean import vote as vote
from fedkd.ensemble.robust import Guarded as Guarded
from fedkd.ensemble.robust import coordinate_median as coordinate_median
from fedkd.ensemble.robust import cronus as cronus
from fedkd.ensemble.robust import exp_guard as exp_guard
from fedkd.ensemble.robust import trimmed_mean as trimmed_mean
from fedkd.ensemble.stream import StreamedMean as StreamedMean
from fedkd.ensemble.weighted import by_class_counts as by_class_counts
from fedkd.ensemble.weighted import by_confidence as by_confidence
from fedkd.ensemble.weighted import by_entropy as by_entropy
from fedkd.ensemble.weighted import by_label_counts as by_label_counts
from fedkd.ensemble.weighted import by_variance as by_variance
from fedkd.ensemble.weighted import ca_mkd as ca_mkd
from fedkd.ensemble.weighted import ca_mkd_weights as ca_mkd_weights
from fedkd.ensemble.weighted import class_count_weights as class_count_weights
from fedkd.ensemble.weighted import confidence_weights as confidence_weights
from fedkd.ensemble.weighted import ebkd as ebkd
from fedkd.ensemble.weighted import ebkd_weights as ebkd_weights
from fedkd.ensemble.weighted import entropy_weights as entropy_weights
from fedkd.ensemble.weighted import variance_weights as variance_weights
from fedkd.ensemble.weighted import weighted_logits as weighted_logits
from fedkd.ensemble.weighted import weighted_probabilities as weighted_probabilities
