"""How good a policy is: unbiased estimators over episodes, summaries with their errors, reports that compare. Pure."""

from rollstream.trainers.evaluation.baselines import against
from rollstream.trainers.evaluation.comparison import Difference, compare_evaluations
from rollstream.trainers.evaluation.episodes import EpisodeFacts, Scores, episode_facts, is_foreign
from rollstream.trainers.evaluation.estimators import default_ks, pass_at_k, pass_hat_k
from rollstream.trainers.evaluation.report import Evaluation, EvaluationReport, decode_report, encode_report
from rollstream.trainers.evaluation.results import PromptResult, prompt_results
from rollstream.trainers.evaluation.summaries import MetricSummary, summarize, summarize_environments

__all__ = [
    "Difference",
    "EpisodeFacts",
    "Evaluation",
    "EvaluationReport",
    "MetricSummary",
    "PromptResult",
    "Scores",
    "against",
    "compare_evaluations",
    "decode_report",
    "default_ks",
    "encode_report",
    "episode_facts",
    "is_foreign",
    "pass_at_k",
    "pass_hat_k",
    "prompt_results",
    "summarize",
    "summarize_environments",
]
