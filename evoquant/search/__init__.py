"""Searches behind ask and tell, the archive of what they found, and ways to choose from it. No torch."""

from evoquant.search.additive import AdditiveModel, choice_indices
from evoquant.search.archive import Evaluated, ParetoArchive
from evoquant.search.assisted import SurrogateReport, SurrogateSearch
from evoquant.search.baselines import GreedySearch, RandomSearch
from evoquant.search.domain import GenomeDomain
from evoquant.search.hypervolume import ReferencePoint
from evoquant.search.milp import milp_seeds
from evoquant.search.nsga2 import Nsga2Search
from evoquant.search.operators import (
    BlockCrossover,
    RunMutation,
    StepMutation,
    UniformCrossover,
    VariationRates,
    random_genomes,
)
from evoquant.search.racing import Rivals, looks
from evoquant.search.registry import SEARCHERS
from evoquant.search.searcher import Candidate, Learner, Searcher
from evoquant.search.selection import knee, query, ranking
from evoquant.search.surrogate import GeneFeatures, Surrogate, rank_correlation
from evoquant.search.termination import Termination

__all__ = [
    "SEARCHERS",
    "AdditiveModel",
    "BlockCrossover",
    "Candidate",
    "Evaluated",
    "GeneFeatures",
    "GenomeDomain",
    "GreedySearch",
    "Learner",
    "Nsga2Search",
    "ParetoArchive",
    "RandomSearch",
    "ReferencePoint",
    "Rivals",
    "RunMutation",
    "Searcher",
    "StepMutation",
    "Surrogate",
    "SurrogateReport",
    "SurrogateSearch",
    "Termination",
    "UniformCrossover",
    "VariationRates",
    "choice_indices",
    "knee",
    "looks",
    "milp_seeds",
    "query",
    "random_genomes",
    "rank_correlation",
    "ranking",
]
